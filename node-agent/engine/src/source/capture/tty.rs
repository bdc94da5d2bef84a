//! The state of pseudo terminals, and what was typed of a line that is not ended.
//!
//! A canonical terminal keeps a line to itself until it is ended: neither read(2) nor FIONREAD tells of it. But
//! the line editor reprints it when it meets the VREPRINT character (termios(3)). That is typed by the agent on the
//! master, twice, and the two equal answers are taken from the master again, while nobody else can run. Nothing is
//! taken from anybody; at worst, if the agent dies in between, the user sees his line once more.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::fs::MetadataExt;
use std::time::{Duration, Instant};

use image::files::{FileKind, Terminal, TerminalSide};
use nix::poll::PollFlags;
use sys::Errno;
use sys::tty::{self, Termios};

use super::table::{Open, Table};
use crate::source::descriptor::Class;
use crate::source::error::TRY_AGAIN;
use crate::source::findings::Findings;
use crate::source::look::Look;
use crate::source::spec::TreeSpec;
use crate::source::terminals::{self, End};
use crate::source::view::View;
use crate::source::{SourceError, capture::files::live};

const OPOST: u32 = 1;
const ONLCR: u32 = 4;
const ICANON: u32 = 2;
const ECHO: u32 = 0o10;
const ECHOCTL: u32 = 0o1000;
const IEXTEN: u32 = 0o100_000;
const EXTPROC: u32 = 0o200_000;
const VERASE: usize = 2;
const VMIN: usize = 6;
const VTIME: usize = 5;
const VREPRINT: usize = 12;
/// How long the line editor may take to answer.
const ANSWER: Duration = Duration::from_millis(500);

/// What a terminal may hold that nobody can read yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hidden {
    /// Nothing: what is typed can be read at once.
    Nothing,
    /// A part of a line, which is reprinted on this character.
    Reprint(u8),
    /// A part of a line that cannot be told.
    Unreadable(&'static str),
}

impl Hidden {
    /// What these modes mean.
    pub(crate) fn of(termios: &Termios) -> Self {
        if termios.lflag & ICANON == 0 || termios.lflag & EXTPROC != 0 {
            return Self::Nothing;
        }
        let key = termios.cc[VREPRINT];
        let others = termios.cc.iter().enumerate().filter(|(at, _)| ![VREPRINT, VMIN, VTIME].contains(at));
        let unique = key != 0 && key < 0x20 && others.clone().all(|(_, cc)| *cc != key);
        if termios.lflag & (ECHO | IEXTEN) != ECHO | IEXTEN
            || !unique
            || termios.oflag & !(OPOST | ONLCR) != 0
        {
            return Self::Unreadable(
                "a line is being typed without echo, so that what there is of it cannot be seen",
            );
        }
        Self::Reprint(key)
    }
}

/// Terminals by number, with their places in the image.
#[derive(Debug, Default)]
pub(crate) struct Terminals {
    places: BTreeMap<u32, u32>,
    pub(crate) terminals: Vec<Terminal>,
}

impl Terminals {
    /// Reads all terminals of the tree. They were checked to be quiet.
    pub(crate) fn capture(
        table: &Table,
        look: &Look,
        spec: &TreeSpec,
        view: &View,
        findings: &mut Findings,
    ) -> Result<Self, SourceError> {
        let mut sides: BTreeMap<u32, (Option<&Open>, Option<&Open>)> = BTreeMap::new();
        for (open, end) in ends(table) {
            let index = terminals::index_of(end, open.file.as_fd())
                .map_err(|errno| SourceError::kernel("ask a terminal", open.holder_pid, errno))?;
            let Some(index) = index else { continue };
            let sides = sides.entry(index).or_default();
            match end.side {
                TerminalSide::Master => sides.0 = Some(open),
                TerminalSide::Slave | TerminalSide::Own => sides.1 = Some(open),
            }
        }
        for given in &spec.terminals {
            sides.entry(given.index).or_default();
        }
        let mut all = Self::default();
        for (index, (master, slave)) in sides {
            let terminal = one(index, master, slave, look, spec, view, findings)
                .map_err(|errno| SourceError::kernel(format!("read terminal {index}"), spec.root, errno))?;
            let Some(terminal) = terminal else { continue };
            all.places.insert(index, u32::try_from(all.terminals.len()).unwrap_or(u32::MAX));
            all.terminals.push(terminal);
        }
        Ok(all)
    }

    /// What a descriptor of a terminal is in the image; `None` when its terminal was refused.
    pub(crate) fn kind(&self, open: &Open, end: &End) -> Result<Option<FileKind>, SourceError> {
        let index = terminals::index_of(end, open.file.as_fd())
            .map_err(|errno| SourceError::kernel("ask a terminal", open.holder_pid, errno))?;
        let Some(index) = index else {
            return Ok(Some(FileKind::HungUp { index: end.index }));
        };
        let place = self.places.get(&index).copied();
        Ok(place.map(|terminal| FileKind::Terminal { terminal, side: end.side, path: end.path.clone() }))
    }
}

fn ends(table: &Table) -> impl Iterator<Item = (&Open, &End)> {
    table.open.iter().filter_map(|open| match &open.class {
        Class::Terminal(end) => Some((open, end)),
        _ => None,
    })
}

fn one(
    index: u32,
    master: Option<&Open>,
    slave: Option<&Open>,
    look: &Look,
    spec: &TreeSpec,
    view: &View,
    findings: &mut Findings,
) -> Result<Option<Terminal>, Errno> {
    let runtimes: OwnedFd;
    let (side, given) = match (master, terminals::given(spec, index)) {
        (Some(master), _) => (master.file.as_fd(), false),
        (None, Some(master)) => {
            runtimes = master?;
            (runtimes.as_fd(), true)
        }
        // It was refused already.
        (None, None) => return Ok(None),
    };
    let termios = tty::termios(side)?;
    let window = tty::window_size(side)?;
    let node = view.symlink_metadata(terminals::path(index).as_bytes()).ok_or(Errno::ENOENT)?;
    let packet = tty::is_packet(side)?;
    let mut line = Vec::new();
    if let (Hidden::Reprint(key), false, Some(slave)) = (Hidden::of(&termios), given, slave) {
        match typed(side, slave.file.as_fd(), packet, key, &termios)? {
            Ok(found) => line = found,
            Err(why) => {
                findings.fd(
                    slave.holder.0,
                    slave.holder.1,
                    format!("{}: {why}", terminals::path(index)),
                    TRY_AGAIN,
                );
            }
        }
    }
    let leader = live(look).find(|found| {
        terminals::controlling(&found.process.stat) == Some(index)
            && found.process.sid() == found.process.inner
    });
    let session = leader.and_then(|found| {
        Some((found.process.inner, terminals::foreground(&look.processes, &found.process.stat)?))
    });
    Ok(Some(Terminal {
        index,
        given,
        termios: termios.to_bytes(),
        window: [window.rows, window.columns, window.x_pixels, window.y_pixels],
        locked: tty::is_locked(side)?,
        packet,
        exclusive: slave.map_or(Ok(false), |slave| tty::is_exclusive(slave.file.as_fd()))?,
        left: terminals::ready(side)?.contains(PollFlags::POLLHUP),
        mode: node.st_mode(),
        owner: (node.st_uid(), node.st_gid()),
        session,
        line,
    }))
}

/// What was typed of a line that is not ended; `Err` says why it cannot be told.
fn typed(
    master: BorrowedFd<'_>,
    slave: BorrowedFd<'_>,
    packet: bool,
    key: u8,
    termios: &Termios,
) -> Result<Result<Vec<u8>, &'static str>, Errno> {
    let shows_control = termios.lflag & ECHOCTL != 0;
    let mut marker = if shows_control { vec![b'^', key ^ 0x40] } else { vec![key] };
    marker.extend_from_slice(if termios.oflag & (OPOST | ONLCR) == OPOST | ONLCR { b"\r\n" } else { b"\n" });
    nix::unistd::write(master, &[key, key])?;
    let mut got = Vec::new();
    let end = Instant::now() + ANSWER;
    while !twice(&got, &marker) && Instant::now() < end {
        take(master, slave, packet, &mut got)?;
    }
    if !twice(&got, &marker) {
        // The character was taken as a part of the line (after VLNEXT): away with it, and with what that shows.
        if termios.cc[VERASE] != 0 {
            nix::unistd::write(master, &[termios.cc[VERASE]])?;
        }
        let end = Instant::now() + ANSWER / 10;
        while Instant::now() < end {
            take(master, slave, packet, &mut got)?;
        }
        return Ok(Err("what was typed of a line cannot be told"));
    }
    let line = got[marker.len()..got.len() / 2].to_vec();
    // "^A" may be two characters, or one.
    let doubtful =
        shows_control && line.windows(2).any(|pair| pair[0] == b'^' && matches!(pair[1], b'?'..=b'_'));
    Ok(if doubtful { Err("a line with control characters is being typed") } else { Ok(line) })
}

/// The answer has come twice: a marker, the line, and both again.
fn twice(got: &[u8], marker: &[u8]) -> bool {
    let (first, second) = got.split_at(got.len() / 2);
    first.starts_with(marker) && first == second
}

/// Reads what the master has, without waiting.
fn take(master: BorrowedFd<'_>, slave: BorrowedFd<'_>, packet: bool, got: &mut Vec<u8>) -> Result<(), Errno> {
    // Each has the kernel finish what is on its way there.
    terminals::ready(slave)?;
    if !terminals::ready(master)?.contains(PollFlags::POLLIN) {
        std::thread::sleep(Duration::from_micros(50));
        return Ok(());
    }
    let mut buffer = [0; 4096];
    let length = nix::unistd::read(master, &mut buffer)?;
    let skip = usize::from(packet).min(length);
    got.extend_from_slice(&buffer[skip..length]);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A terminal with these changes to its modes.
    fn pair(change: impl FnOnce(&mut Termios)) -> (OwnedFd, OwnedFd, Termios) {
        let pty = nix::pty::openpty(None, None).unwrap();
        let mut termios = tty::termios(pty.slave.as_fd()).unwrap();
        change(&mut termios);
        tty::set_termios(pty.slave.as_fd(), &termios).unwrap();
        (pty.master, pty.slave, termios)
    }

    fn read_off(master: &OwnedFd, slave: &OwnedFd) -> Vec<u8> {
        let mut seen = Vec::new();
        take(master.as_fd(), slave.as_fd(), false, &mut seen).unwrap();
        seen
    }

    #[test]
    fn a_line_that_is_not_ended_is_seen_and_stays() {
        let (master, slave, termios) = pair(|_| ());
        let Hidden::Reprint(key) = Hidden::of(&termios) else { panic!("{:?}", Hidden::of(&termios)) };
        let typed = |packet| super::typed(master.as_fd(), slave.as_fd(), packet, key, &termios).unwrap();
        assert_eq!(typed(false), Ok(Vec::new()));
        nix::unistd::write(&master, "hällo x".as_bytes()).unwrap();
        assert_eq!(read_off(&master, &slave), "hällo x".as_bytes());
        assert_eq!(sys::tcp::inq(slave.as_fd()), Ok(0), "the kernel does not tell of it");
        assert_eq!(typed(false), Ok("hällo x".as_bytes().to_vec()));
        tty::set_packet(master.as_fd(), true).unwrap();
        assert_eq!(typed(true), Ok("hällo x".as_bytes().to_vec()));
        tty::set_packet(master.as_fd(), false).unwrap();
        assert_eq!(read_off(&master, &slave), b"", "nothing of the question is left");
        nix::unistd::write(&master, b"y\n").unwrap();
        let mut line = [0; 64];
        let length = nix::unistd::read(&slave, &mut line).unwrap();
        assert_eq!(&line[..length], "hällo xy\n".as_bytes());
    }

    #[test]
    fn what_cannot_be_told_is_said() {
        let (master, slave, termios) = pair(|_| ());
        let Hidden::Reprint(key) = Hidden::of(&termios) else { panic!("not canonical") };
        nix::unistd::write(&master, b"a^Cb").unwrap();
        read_off(&master, &slave);
        assert!(super::typed(master.as_fd(), slave.as_fd(), false, key, &termios).unwrap().is_err());
        // After VLNEXT the next character is a part of the line.
        let (master, slave, termios) = pair(|_| ());
        nix::unistd::write(&master, &[b'a', termios.cc[15]]).unwrap();
        read_off(&master, &slave);
        assert!(super::typed(master.as_fd(), slave.as_fd(), false, key, &termios).unwrap().is_err());
        nix::unistd::write(&master, b"b\n").unwrap();
        let mut line = [0; 64];
        let length = nix::unistd::read(&slave, &mut line).unwrap();
        assert_eq!(&line[..length], b"ab\n");
    }

    #[test]
    fn modes_without_a_hidden_line() {
        let (_m, _s, raw) = pair(|termios| termios.lflag &= !ICANON);
        assert_eq!(Hidden::of(&raw), Hidden::Nothing);
        let (_m, _s, silent) = pair(|termios| termios.lflag &= !ECHO);
        assert!(matches!(Hidden::of(&silent), Hidden::Unreadable(_)));
    }
}
