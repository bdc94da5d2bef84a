//! Collects what cannot be carried over.

use image::{Addr, Pid, Refusal, Subject};

/// Refusals found so far.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// In the order in which they were found.
    pub(crate) list: Vec<Refusal>,
}

impl Findings {
    /// Adds one; the same one twice counts once.
    pub(crate) fn add(&mut self, pid: Pid, subject: Subject, reason: impl Into<String>, way_out: &str) {
        let refusal = Refusal { pid, subject, reason: reason.into(), way_out: way_out.to_owned() };
        if !self.list.contains(&refusal) {
            self.list.push(refusal);
        }
    }

    pub(crate) fn process(&mut self, pid: Pid, reason: impl Into<String>, way_out: &str) {
        self.add(pid, Subject::Process, reason, way_out);
    }

    pub(crate) fn thread(&mut self, pid: Pid, tid: Pid, reason: impl Into<String>, way_out: &str) {
        self.add(pid, Subject::Thread(tid), reason, way_out);
    }

    pub(crate) fn fd(&mut self, pid: Pid, fd: i32, reason: impl Into<String>, way_out: &str) {
        self.add(pid, Subject::Fd(fd), reason, way_out);
    }

    pub(crate) fn address(&mut self, pid: Pid, at: Addr, reason: impl Into<String>, way_out: &str) {
        self.add(pid, Subject::Address(at), reason, way_out);
    }

    pub(crate) fn container(&mut self, reason: impl Into<String>, way_out: &str) {
        self.add(0, Subject::Container, reason, way_out);
    }
}
