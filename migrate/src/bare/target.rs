//! The process that is copied into: memory in place ahead, and a connection that fills it.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use proto::tls::{Tls, TlsFiles};
use rustls::{ServerConnection, StreamOwned};

use super::Options;
use super::wire::{Header, digest};
use crate::workload::memory::PAGE_BYTES;

/// Prints its port, takes one connection, ends with it.
pub(super) fn run(options: &Options, dir: &Path) -> Result<()> {
    // Not zero, so that every page is there before anything arrives.
    let mut memory = vec![1_u8; options.pages()? * PAGE_BYTES];
    let tls = Tls::load(&TlsFiles::in_dir(dir)).context("load the credentials")?;
    let listener = TcpListener::bind("127.0.0.1:0").context("listen")?;
    println!("{}", listener.local_addr()?.port());
    let (tcp, _) = listener.accept().context("accept")?;
    super::wire::tune(&tcp)?;
    if options.plain {
        return fill(tcp, &mut memory);
    }
    let mut server = ServerConnection::new(tls.server_config())?;
    server.set_buffer_limit(None);
    fill(StreamOwned::new(server, tcp), &mut memory)
}

fn fill(mut stream: impl Read + Write, memory: &mut [u8]) -> Result<()> {
    let mut nowhere = vec![0; super::BATCH];
    loop {
        match Header::read(&mut stream)? {
            Header::Run { offset, len } => {
                let end = offset.checked_add(len).context("a run is too long")?;
                let place = memory.get_mut(offset..end).context("a run is outside of the memory")?;
                stream.read_exact(place)?;
            }
            Header::Nowhere { len } => {
                ensure!(len <= super::BATCH, "too much for nowhere");
                stream.read_exact(&mut nowhere[..len])?;
            }
            Header::Round => {
                stream.write_all(&[1])?;
                stream.flush()?;
            }
            Header::Digest => {
                stream.write_all(&digest(0, memory).to_le_bytes())?;
                stream.flush()?;
                return Ok(());
            }
        }
    }
}
