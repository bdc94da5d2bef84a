//! Kernel keyrings of a thread, which are not carried yet. See keyrings(7).

use sys::keys;
use sys::tape::{Block, CallId, Outcome, Program};

const WITHOUT: &str = "have the program drop its keys, or start it without";
/// Enough for `keyring;UID;GID;PERM;_uid_ses.UID`.
const DESCRIPTION: usize = 128;

/// What a thread is asked. A thread that never had a session keyring gets its user's by that, which is what it
/// would have searched before, too.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask {
    thread: CallId,
    process: CallId,
    session: CallId,
    content: CallId,
    description: Block,
}

impl Ask {
    /// Adds the calls to a program.
    pub(crate) fn add(program: &mut Program) -> Self {
        let mut id = |which: i32| {
            program.try_call(libc::SYS_keyctl, &[keys::GET_KEYRING_ID.into(), which.into(), 0.into()])
        };
        let (thread, process, session) = (id(keys::THREAD), id(keys::PROCESS), id(keys::SESSION));
        let content = program
            .try_call(libc::SYS_keyctl, &[keys::READ.into(), keys::SESSION.into(), 0.into(), 0.into()]);
        let description = program.space(DESCRIPTION);
        let length = i32::try_from(DESCRIPTION).unwrap_or(0);
        program.try_call(
            libc::SYS_keyctl,
            &[keys::DESCRIBE.into(), keys::SESSION.into(), description.into(), length.into()],
        );
        Self { thread, process, session, content, description }
    }

    /// What it has that would be lost: reason and way out.
    pub(crate) fn refusal(&self, outcome: &Outcome) -> Option<(&'static str, &'static str)> {
        if outcome.result(self.thread) > 0 {
            return Some(("it has a thread keyring: keys of the kernel are not carried yet", WITHOUT));
        }
        if outcome.result(self.process) > 0 {
            return Some(("it has a process keyring: keys of the kernel are not carried yet", WITHOUT));
        }
        let session = outcome.result(self.session);
        // The user's own, and the one that this agent's programs inherit, belong to the host.
        let hosts = outcome.bytes(self.description).windows(10).any(|part| part == b";_uid_ses.")
            || keys::session().is_ok_and(|own| i64::from(own) == session);
        if session > 0 && !hosts && outcome.result(self.content) > 0 {
            return Some((
                "it has keys in its session keyring: keys of the kernel are not carried yet",
                WITHOUT,
            ));
        }
        None
    }
}
