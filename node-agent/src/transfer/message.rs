//! What two agents say to each other on a control connection.

use std::time::Duration;

use image::Refusal;
use image::groups::Groups;
use image::shape::{Ahead, Shape};
use image::state::{HostFacts, Image, Needs};
use serde::{Deserialize, Serialize};

use crate::commit::{Answer, Epoch, Owner};
use crate::session::clocks::{Distance, HostClocks};
use crate::session::ports::{EthernetFrame, HostState};

/// What a connection is for; the first thing that the side that dialled says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Protocol versions that the dialling agent speaks, best first.
    pub versions: Vec<u32>,
    /// The migration's name.
    pub migration: String,
    /// Its epoch.
    pub epoch: Epoch,
    /// The container's name.
    pub container: String,
    /// The dialling agent's incarnation.
    pub incarnation: u64,
    /// The other agent's incarnation, as its answer to Prepare said it; 0 = not bound to one.
    pub peer_incarnation: u64,
    /// Where the dialling agent listens for peers: host:port.
    pub address: String,
    /// What for.
    pub purpose: Purpose,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Purpose {
    /// Never sent; a zero is no purpose.
    Invalid,
    /// The control connection of a session, dialled by the source.
    Session,
    /// The bulk stream of this number of an open session, dialled by the source, one after the other from 0.
    Bulk(u32),
    /// A single question or order about a session that has lost its connection: Query, Commit or Abort.
    Question,
    /// A measurement of the link: `Warm` as often as the source likes, and `AskClocks`, which is answered.
    Probe,
}

/// A message. Which may come when is for [`super::step`] to say.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum PeerMessage {
    /// Never sent; a zero is no message.
    Invalid,
    /// Opens a connection.
    Hello(Hello),
    /// The answer to Hello.
    Welcome {
        /// The protocol version that both will speak.
        version: u32,
        /// The answering agent's incarnation.
        incarnation: u64,
    },
    /// The answer to Hello when the connection is not wanted; it is closed.
    Unwelcome {
        /// Why.
        reason: String,
    },
    /// Source: can you take a container like this one?
    Check {
        /// What the container relies on.
        facts: HostFacts,
        /// What else it needs of the target.
        needs: Needs,
        /// Memory it uses, bytes.
        memory_bytes: u64,
        /// Its control groups.
        groups: Box<Groups>,
    },
    /// Target: yes, if empty; else what it lacks.
    Checked(Vec<Refusal>),
    /// Source: what do your clocks show? Answered at once.
    AskClocks,
    /// The answer to AskClocks.
    Clocks(HostClocks),
    /// Source: what the sandbox is built from.
    Spec {
        /// Opaque here.
        spec: Vec<u8>,
        /// How far the clocks of the two hosts are apart.
        clocks: Distance,
        /// How many bulk streams the source will open: 1 to [`super::bulk::MAX_STREAMS`].
        streams: u32,
    },
    /// Target: the sandbox stands, unless it lacks something; bulk streams are opened now.
    Prepared {
        /// What stands against it; empty when nothing does.
        lacks: Vec<Refusal>,
        /// How frames may be packed, as numbers of [`image::packed::Codec`]; others are not known.
        codecs: Vec<u8>,
    },
    /// Source: the container's mounts as they are now, opaque here. In answer to it: [`PeerMessage::MountsMade`].
    Mounts(Vec<u8>),
    /// Target: the sandbox has them now, if empty; else what the target lacks.
    MountsMade(Vec<Refusal>),
    /// Source: processes and mappings, before the pages that need them. The target says nothing.
    Shape {
        /// Rises by one with each shape of a session, from 1.
        generation: u32,
        /// The shape.
        shape: Shape,
    },
    /// Source: the control groups, when they changed; the processes in them are of the last shape. The target says
    /// nothing.
    Groups {
        /// That of the last shape; one more when pages that follow wait for the groups, so that they are charged where
        /// they belong.
        generation: u32,
        /// The groups.
        groups: Box<Groups>,
    },
    /// Source: what can be prepared for the processes of the last shape, when it changed. The target says nothing.
    Ahead(Vec<Ahead>),
    /// Source: a round has been sent on the bulk streams.
    RoundEnd {
        /// From 0; round 0 is that of the files that are mapped.
        index: u32,
    },
    /// Target: everything of that round is in its place.
    RoundDone {
        /// Which.
        index: u32,
    },
    /// Source: the container is about to be frozen. Says nothing: it makes the connection ready for a large message.
    Warm {
        /// Zeros.
        #[serde(with = "serde_bytes")]
        padding: Vec<u8>,
    },
    /// Source: the container is frozen and this is it; the last pages are on the bulk streams, as round `index`.
    Switchover {
        /// Number of the last round.
        index: u32,
        /// Everything but the pages.
        image: Box<Image>,
        /// What changed of the state that the host keeps for it.
        host: Vec<HostState>,
        /// Frames that were held so far.
        held: Vec<EthernetFrame>,
    },
    /// Target: a complete copy waits, frozen.
    Ready {
        /// From the arrival of Switchover to the sending of this.
        took: Duration,
        /// The same by step.
        steps: Vec<(String, Duration)>,
    },
    /// Source: COMMITTED is on disk; the container is yours.
    Commit {
        /// Frames that were held since Switchover.
        held: Vec<EthernetFrame>,
    },
    /// Target: OWNED is on disk.
    Ack {
        /// From the arrival of Commit to the thaw; zero when it is not known any more.
        resumed: Duration,
        /// From the arrival of Commit to the sending of this.
        took: Duration,
        /// [`PeerMessage::Ack::resumed`] by step.
        steps: Vec<(String, Duration)>,
    },
    /// Target, after Commit: its container is announced and runs. In answer to it: [`PeerMessage::Late`] with `last`.
    Attached,
    /// Source, after Commit: frames that came late.
    Late {
        /// The frames.
        frames: Vec<EthernetFrame>,
        /// In answer to Attached: what arrives at the target directly need not wait for others.
        last: bool,
    },
    /// Source: it is over; discard your copy.
    Abort {
        /// Why.
        reason: String,
    },
    /// Target: it cannot go on; nothing of the copy is left, or will be.
    Failed {
        /// Why.
        reason: String,
    },
    /// Target, in answer to Commit: no copy lives here and none was ever owned.
    Lost,
    /// Target, in answer to Commit: a newer epoch has been here.
    Stale {
        /// That one.
        epoch: Epoch,
        /// Who owned the container then.
        owner: Option<Owner>,
    },
    /// Target: what was decided?
    Query,
    /// The answer to Query.
    Answer(Answer),
    /// The order was taken (to Abort on a question connection).
    Done,
    /// Target, in answer to Commit on a question connection: it is being taken over, or cannot be told yet. Ask again.
    Later,
    /// Target, before Ack and since version 4: the first frame with data of its container's programs has left.
    Served {
        /// From the thaw to the frame.
        after: Duration,
    },
}

impl PeerMessage {
    /// Its name in logs.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Invalid => "Invalid",
            Self::Hello(_) => "Hello",
            Self::Welcome { .. } => "Welcome",
            Self::Unwelcome { .. } => "Unwelcome",
            Self::Check { .. } => "Check",
            Self::Checked(_) => "Checked",
            Self::AskClocks => "AskClocks",
            Self::Clocks(_) => "Clocks",
            Self::Spec { .. } => "Spec",
            Self::Prepared { .. } => "Prepared",
            Self::Mounts(_) => "Mounts",
            Self::MountsMade(_) => "MountsMade",
            Self::Shape { .. } => "Shape",
            Self::Groups { .. } => "Groups",
            Self::Ahead(_) => "Ahead",
            Self::RoundEnd { .. } => "RoundEnd",
            Self::RoundDone { .. } => "RoundDone",
            Self::Warm { .. } => "Warm",
            Self::Switchover { .. } => "Switchover",
            Self::Ready { .. } => "Ready",
            Self::Commit { .. } => "Commit",
            Self::Ack { .. } => "Ack",
            Self::Late { .. } => "Late",
            Self::Attached => "Attached",
            Self::Abort { .. } => "Abort",
            Self::Failed { .. } => "Failed",
            Self::Lost => "Lost",
            Self::Stale { .. } => "Stale",
            Self::Query => "Query",
            Self::Answer(_) => "Answer",
            Self::Done => "Done",
            Self::Later => "Later",
            Self::Served { .. } => "Served",
        }
    }
}

#[cfg(test)]
mod tests {
    use image::codec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_decode_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let _ = codec::decode::<PeerMessage>(&bytes);
        }

        #[test]
        fn any_bytes_after_a_valid_tag_decode_without_panic(tag in 0u8..30, mut bytes in prop::collection::vec(any::<u8>(), 1..500)) {
            bytes[0] = tag;
            if let Ok(message) = codec::decode::<PeerMessage>(&bytes) {
                let again = codec::encode(&message).unwrap();
                prop_assert_eq!(codec::decode::<PeerMessage>(&again).unwrap(), message);
            }
        }
    }

    #[test]
    fn the_zero_tags_are_no_message_purpose_or_mark() {
        use super::super::bulk::Mark;
        assert_eq!(codec::encode(&PeerMessage::Invalid).unwrap(), [0]);
        assert_eq!(codec::encode(&Purpose::Invalid).unwrap(), [0]);
        assert_eq!(codec::encode(&Mark::Invalid).unwrap(), [0]);
    }
}
