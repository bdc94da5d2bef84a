//! A container's log: what it wrote to standard output and error.

use std::fs::File;
use std::io::{self, Read as _};

use super::Runtime;
use super::error::RuntimeError;
use super::name::ContainerName;
use super::status::State;

/// Reads a log from its beginning.
#[derive(Debug)]
pub struct LogReader {
    file: File,
    name: ContainerName,
}

impl Runtime {
    /// Opens a container's log.
    ///
    /// # Errors
    /// When the container is not here or its log cannot be opened.
    pub fn logs(&self, name: &ContainerName) -> Result<LogReader, RuntimeError> {
        self.record(name)?;
        let path = self.dir(name).log();
        let file = File::open(&path).map_err(RuntimeError::file("open", &path))?;
        Ok(LogReader { file, name: name.clone() })
    }
}

impl LogReader {
    /// Up to 64 KiB that were not read yet; empty when there is nothing more now.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn next_chunk(&mut self) -> io::Result<Vec<u8>> {
        let mut chunk = vec![0; 64 * 1024];
        let length = self.file.read(&mut chunk)?;
        chunk.truncate(length);
        Ok(chunk)
    }

    /// Nothing will be appended any more: the container has ended or is not here.
    #[must_use]
    pub fn is_final(&self, runtime: &Runtime) -> bool {
        runtime.get(&self.name).map_or(true, |status| status.state == State::Stopped)
    }
}
