//! Which processes a target that follows one shape after the other may make anew: the source sends all of their memory again.

use std::collections::{HashMap, HashSet};

use image::shape::{Mm, ProcessShape, Shared};
use image::{Pid, Refusal, Subject};

/// The processes of `new` that the source does not take for kept from `old`. Parents come before their children.
pub(crate) fn made_anew(old: &[ProcessShape], new: &[ProcessShape]) -> HashSet<Pid> {
    let before: HashMap<Pid, &ProcessShape> = old.iter().map(|process| (process.pid, process)).collect();
    let mut anew = HashSet::new();
    for process in new {
        let same = before.get(&process.pid).is_some_and(|was| same_process(was, process));
        if !same || anew.contains(&process.ppid) {
            anew.insert(process.pid);
        }
    }
    anew
}

fn same_process(was: &ProcessShape, is: &ProcessShape) -> bool {
    // Only one that gets something from another must be made anew.
    let given = |process: &ProcessShape| {
        let Shared { files, directories } = process.shared;
        let other = |first: Pid| if first == process.pid { 0 } else { first };
        (other(files), other(directories))
    };
    (was.ppid, was.pgid, was.sid, was.exit_signal, &was.zombie, was.tty)
        == (is.ppid, is.pgid, is.sid, is.exit_signal, &is.zombie, is.tty)
        && given(was) == given(is)
        && was.mm.exe.path == is.mm.exe.path
}

/// The processes of the last shape that a target followed, without their memory.
#[derive(Debug, Default)]
pub(crate) struct Followed(Vec<ProcessShape>);

impl Followed {
    /// Notes the next ones. `ended`: those that the target ended for it, some of which it made again.
    ///
    /// # Errors
    /// When one had to be made again of which the source does not know that.
    pub(crate) fn follow(&mut self, processes: &[ProcessShape], ended: &[Pid]) -> Result<(), Refusal> {
        if !ended.is_empty() {
            let known = made_anew(&self.0, processes);
            let lost = |process: &&ProcessShape| {
                process.zombie.is_none() && ended.contains(&process.pid) && !known.contains(&process.pid)
            };
            if let Some(process) = processes.iter().find(lost) {
                return Err(Refusal {
                    pid: process.pid,
                    subject: Subject::Process,
                    reason: "it had to be made again at the target for others to fit, and its memory was there already"
                        .to_owned(),
                    way_out: "try again".to_owned(),
                });
            }
        }
        self.0.clear();
        self.0.extend(processes.iter().map(|process| ProcessShape {
            mm: Mm { exe: process.mm.exe.clone(), ..Mm::default() },
            levels: Vec::new(),
            zombie: process.zombie.clone(),
            ..*process
        }));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use image::namespaces::Nested;

    use super::*;

    fn process(pid: Pid, sid: Pid, exit_signal: i32) -> ProcessShape {
        ProcessShape {
            pid,
            ppid: i32::from(pid != 1),
            pgid: sid,
            sid,
            exit_signal,
            zombie: None,
            tty: None,
            levels: Vec::new(),
            namespaces: Nested::default(),
            shared: Shared::default(),
            mm: Mm::default(),
        }
    }

    #[test]
    fn one_that_is_made_again_without_the_sources_knowledge_is_refused() {
        let before = [process(1, 1, 17), process(2, 2, 17), process(3, 2, 17)];
        // The session of the third one ends with its leader, of which alone the source sends everything again.
        let after = [process(1, 1, 17), process(2, 2, 0), process(3, 2, 17)];
        let mut followed = Followed::default();
        followed.follow(&before, &[]).unwrap();
        let refusal = followed.follow(&after, &[2, 3]).unwrap_err();
        assert_eq!((refusal.pid, refusal.subject), (3, Subject::Process));
        followed.follow(&after, &[2]).unwrap();
        assert!(followed.follow(&after, &[2]).is_err());
        // What has ended for good, and what is new.
        followed.follow(&after[..2], &[3]).unwrap();
        followed.follow(&after, &[3]).unwrap();
    }
}
