//! In which order a target takes the messages of a session. Pure.

use super::message::PeerMessage;

/// Where a session stands, at the target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SessionState {
    /// Hello was answered.
    #[default]
    Greeted,
    /// The target could take it.
    Checked,
    /// The sandbox stands; pages and files arrive.
    Filling {
        /// The newest shape, 0 = none yet.
        generation: u32,
        /// The next round.
        round: u32,
    },
    /// The image has arrived; Ready was or will be said.
    Ready,
    /// Commit has arrived.
    Committed,
    /// Abort has arrived.
    Aborted,
}

/// A message that does not belong there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a {message} message in state {state:?}")]
pub struct OutOfState {
    /// Where the session stood.
    pub state: SessionState,
    /// The message's name.
    pub message: &'static str,
}

/// The state after `message`.
///
/// # Errors
/// [`OutOfState`] when it may not come now; the session is then closed as if the link were lost.
pub fn step(state: SessionState, message: &PeerMessage) -> Result<SessionState, OutOfState> {
    use SessionState::{Aborted, Checked, Committed, Filling, Greeted, Ready};
    Ok(match (state, message) {
        (Greeted, PeerMessage::Check { .. }) => Checked,
        (Checked, PeerMessage::AskClocks) => Checked,
        (Checked, PeerMessage::Spec { .. }) => Filling { generation: 0, round: 0 },
        (Filling { .. }, PeerMessage::Mounts(_)) => state,
        (Filling { generation, round }, PeerMessage::Shape { generation: next, .. })
            if Some(*next) == generation.checked_add(1) =>
        {
            Filling { generation: *next, round }
        }
        (Filling { generation: 1.., .. }, PeerMessage::Ahead(_) | PeerMessage::Warm { .. }) => state,
        (Filling { generation: now @ 1.., round }, PeerMessage::Groups { generation, .. })
            if *generation == now || Some(*generation) == now.checked_add(1) =>
        {
            Filling { generation: *generation, round }
        }
        (Filling { generation, round }, PeerMessage::RoundEnd { index }) if *index == round => {
            Filling { generation, round: round.saturating_add(1) }
        }
        (Filling { generation: 1.., round }, PeerMessage::Switchover { index, .. }) if *index == round => {
            Ready
        }
        (Ready, PeerMessage::Commit { .. }) => Committed,
        (Committed, PeerMessage::Late { .. }) => Committed,
        (Greeted | Checked | Filling { .. } | Ready, PeerMessage::Abort { .. }) => Aborted,
        (state, message) => return Err(OutOfState { state, message: message.name() }),
    })
}

#[cfg(test)]
mod tests {
    use image::state::{HostFacts, Image, Needs};

    use super::*;
    use crate::session::clocks::{Distance, HostClocks};

    fn all() -> Vec<PeerMessage> {
        vec![
            PeerMessage::Check {
                facts: HostFacts::default(),
                needs: Needs::default(),
                memory_bytes: 0,
                groups: Box::default(),
            },
            PeerMessage::Spec { spec: vec![], clocks: Distance::default(), streams: 1 },
            PeerMessage::RoundEnd { index: 0 },
            PeerMessage::Shape { generation: 1, shape: image::shape::Shape::default() },
            PeerMessage::RoundEnd { index: 1 },
            PeerMessage::Switchover {
                index: 2,
                image: Box::new(Image::default()),
                host: vec![],
                held: vec![],
            },
            PeerMessage::Commit { held: vec![] },
            PeerMessage::Late { frames: vec![], last: false },
        ]
    }

    #[test]
    fn the_good_order_passes() {
        let end = all().iter().try_fold(SessionState::default(), step).unwrap();
        assert_eq!(end, SessionState::Committed);
    }

    #[test]
    fn nothing_may_be_left_out_but_late_frames_and_rounds_in_order() {
        for missing in 0..6 {
            let mut messages = all();
            messages.remove(missing);
            assert!(messages.iter().try_fold(SessionState::default(), step).is_err(), "without {missing}");
        }
    }

    #[test]
    fn groups_come_after_a_shape_and_before_the_image() {
        let mut state = SessionState::default();
        for message in all() {
            let taken = step(state, &PeerMessage::Groups { generation: 1, groups: Box::default() });
            assert_eq!(
                taken.is_ok(),
                matches!(state, SessionState::Filling { generation: 1.., .. }),
                "{state:?}"
            );
            state = step(state, &message).unwrap();
        }
    }

    #[test]
    fn what_only_a_target_says_is_refused_from_a_source() {
        let wrong = [
            PeerMessage::Invalid,
            PeerMessage::Prepared { lacks: vec![], codecs: vec![] },
            PeerMessage::Clocks(HostClocks::default()),
            PeerMessage::MountsMade(vec![]),
            PeerMessage::Ready { took: std::time::Duration::ZERO, steps: Vec::new() },
            PeerMessage::Lost,
            PeerMessage::Query,
            PeerMessage::Done,
        ];
        let mut state = SessionState::default();
        for message in all() {
            for wrong in &wrong {
                assert!(step(state, wrong).is_err());
            }
            state = step(state, &message).unwrap();
        }
    }

    #[test]
    fn mounts_come_between_spec_and_switchover() {
        let mounts = PeerMessage::Mounts(vec![1]);
        let mut state = SessionState::default();
        for (index, message) in all().iter().enumerate() {
            let expected = (2..6).contains(&index);
            assert_eq!(step(state, &mounts).is_ok(), expected, "before message {index}");
            state = step(state, message).unwrap();
        }
    }

    #[test]
    fn a_source_may_abort_until_it_commits() {
        let abort = PeerMessage::Abort { reason: String::new() };
        let mut state = SessionState::default();
        for message in all().iter().take(6) {
            assert_eq!(step(state, &abort), Ok(SessionState::Aborted));
            state = step(state, message).unwrap();
        }
        assert_eq!(step(state, &abort), Ok(SessionState::Aborted), "Ready obeys its source");
        state = step(state, &PeerMessage::Commit { held: vec![] }).unwrap();
        assert!(step(state, &abort).is_err());
    }
}
