//! Packet filters of sockets.

use std::os::fd::AsFd;

use image::files::FileKind;
use image::sockets::SockOpt;
use sys::sock::filter;

use super::table::Open;
use crate::source::SourceError;
use crate::source::findings::Findings;
use crate::source::sockets;

/// Adds the filter of a socket, if it has one, to its options.
pub(crate) fn add(open: &Open, kind: &mut FileKind, findings: &mut Findings) -> Result<(), SourceError> {
    let fail = |errno| SourceError::kernel("read a packet filter", open.holder_pid, errno);
    let fd = open.file.as_fd();
    match sockets::has_filter(fd).map_err(fail)? {
        Ok(false) => {}
        Ok(true) => {
            let value = filter::get(fd).map_err(fail)?;
            if let Some(options) = kind.options_mut() {
                options.push(SockOpt { level: libc::SOL_SOCKET, name: libc::SO_ATTACH_FILTER, value });
            }
        }
        Err((reason, way_out)) => {
            let (pid, number) = open.holder;
            findings.fd(pid, number, reason, way_out);
        }
    }
    Ok(())
}
