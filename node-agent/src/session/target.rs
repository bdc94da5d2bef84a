//! The target's side of a migration, up to Ready. What follows is in [`super::waiting`].
//!
//! The thread of the control connection owns the engine's target and takes the source's messages in the
//! order that [`crate::transfer::step`] allows; a thread for each bulk stream fills memory. Whatever fails before
//! Ready ends with nothing left of the copy.

mod stream;

pub(crate) use stream::Arrivals;

use std::net::Shutdown;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use engine::account;
use engine::target::{PageWriter, Target};
use image::packed::Codec;
use image::state::Image;
use proto::telemetry::Parent;
use tracing::Span;

use super::agent::{Agent, Cancel, Mail, Publisher, Serving};
use super::clocks::{Distance, HostClocks};
use super::compat;
use super::failure::{AbortOnPanic, Failure, failpoint};
use super::groups;
use super::ports::{ContainerTarget, EthernetFrame, HostState, Incoming, PortError};
use super::status::{Phase, Role};
use super::switchover;
use super::waiting::{Waiting, end_discarded};
use crate::commit;
use crate::journal::{Begin, End, Record};
use crate::transfer::bulk::{BulkEvent, Gate, MAX_STREAMS};
use crate::transfer::link::{Link, LinkError};
use crate::transfer::message::{Hello, PeerMessage};
use crate::transfer::step::{SessionState, step};

/// How long the source may send nothing at all during pre-copy while its connections stand.
const SILENCE: Duration = Duration::from_secs(60);

/// How long the source may take to hear why the session failed and to close.
const LAST_WORD: Duration = Duration::from_secs(2);

/// A session that was accepted and has not begun.
pub(crate) struct Session {
    agent: Arc<Agent>,
    begin: Begin,
    /// Where the migration's trace goes on.
    trace: Option<Parent>,
    /// The phase's.
    span: Span,
    cancel: Arc<Cancel>,
    publish: Publisher,
    inbox: Receiver<Mail>,
    streams: Receiver<stream::Arrival>,
    events: (Sender<BulkEvent>, Receiver<BulkEvent>),
    gate: Arc<Gate<PageWriter>>,
    state: SessionState,
    /// A message that came while something else was waited for.
    early: Option<PeerMessage>,
    container: Option<Box<dyn ContainerTarget>>,
    engine: Option<Target>,
    received: u64,
    bulk: Vec<stream::Reading>,
}

/// Decides whether `hello` opens the session that was prepared, and takes its place. Err is the reason for a
/// refusal; nothing has changed then.
pub(crate) fn open(agent: &Arc<Agent>, peer: &str, hello: &Hello) -> Result<Session, String> {
    let view = agent.target_view(&hello.container);
    let nonce = hello.peer_incarnation == agent.incarnation;
    let (inbox_sender, inbox) = channel();
    let (arrivals, streams) = Arrivals::new();
    let cancel = Arc::new(Cancel::default());
    let trace = {
        let mut table = agent.table();
        let Some(handle) = table.targets.get_mut(&hello.container) else {
            return Err(format!("no migration of {} is expected", hello.container));
        };
        if handle.migration != hello.migration || handle.epoch != hello.epoch {
            return Err(format!(
                "{} epoch {} is not the migration that is expected",
                hello.migration, hello.epoch
            ));
        }
        if handle.source_node != peer {
            return Err(format!(
                "{} is expected from {}, not from {peer}",
                hello.container, handle.source_node
            ));
        }
        if handle.serving.is_some() {
            return Err(format!("a session of {} is open", hello.migration));
        }
        if !commit::target_on_session(&view, hello.epoch, nonce) {
            return Err(format!(
                "the session of {} is bound to another run of this agent, or is stale",
                hello.migration
            ));
        }
        handle.serving =
            Some(Serving { cancel: Arc::clone(&cancel), bulk: Some(arrivals), inbox: inbox_sender });
        handle.trace.clone()
    };
    let begin = Begin {
        container: hello.container.clone(),
        migration: hello.migration.clone(),
        epoch: hello.epoch,
        boot: agent.boot.clone(),
        role: Role::Target,
        peer: peer.to_owned(),
        peer_address: hello.address.clone(),
        cgroup: std::path::PathBuf::new(),
        frozen_before: false,
    };
    Ok(Session {
        publish: agent.publish(Role::Target, &hello.migration, hello.epoch, &hello.container),
        agent: Arc::clone(agent),
        begin,
        trace,
        span: Span::none(),
        cancel,
        inbox,
        streams,
        events: channel(),
        gate: Gate::new(),
        state: SessionState::default(),
        early: None,
        container: None,
        engine: None,
        received: 0,
        bulk: Vec::new(),
    })
}

impl Session {
    /// Runs it to its end, on this thread.
    pub(crate) fn run(mut self, mut link: Link) {
        // Unwinding gives back what it can; what it cannot the next run of the agent does.
        let _guard = AbortOnPanic;
        let span = tracing::info_span!("migration", id = %self.begin.migration, role = "target", epoch = self.begin.epoch);
        Parent::adopt(self.trace.as_ref(), &span);
        let _entered = span.enter();
        #[cfg(feature = "failpoints")]
        proto::failpoints::load(&self.agent.state_dir);
        match self.until_ready(&mut link) {
            Ok((ready, held)) => {
                let Some(container) = self.container.take() else { return };
                let Self { agent, begin, publish, inbox, span, .. } = self;
                drop(span);
                Waiting {
                    agent,
                    begin,
                    publish,
                    container,
                    ready: Some(ready),
                    link: Some(link),
                    inbox,
                    held,
                }
                .decide();
            }
            Err(failure) => {
                if failure.is_violation() {
                    tracing::warn!(error = failure.text(), peer = self.begin.peer, "closing a session");
                }
                let told = link.send(&PeerMessage::Failed { reason: failure.text() });
                self.discard(&failure);
                if told.is_ok() {
                    link.close(LAST_WORD);
                }
            }
        }
    }

    fn until_ready(
        &mut self,
        link: &mut Link,
    ) -> Result<(engine::target::Ready, Vec<EthernetFrame>), Failure> {
        loop {
            let message = self.hear(link)?;
            let arrived = Instant::now();
            self.state = step(self.state, &message).map_err(|error| Failure::Protocol(error.to_string()))?;
            match message {
                PeerMessage::Check { facts, needs, memory_bytes, groups } => {
                    self.enter(Phase::Checking)?;
                    let node = &self.agent.node;
                    let mut lacks = compat::compare(&facts, &node.facts(), memory_bytes, node.memory_free());
                    lacks.extend(compat::give(&needs, &node.gives()));
                    lacks.extend(compat::limited(&needs, &groups));
                    lacks.extend(node.lacks(&self.begin.container, &groups));
                    let refused = !lacks.is_empty();
                    link.send(&PeerMessage::Checked(lacks.clone()))?;
                    if refused {
                        return Err(Failure::Refused(lacks));
                    }
                }
                PeerMessage::AskClocks => link.send(&PeerMessage::Clocks(HostClocks::now()))?,
                PeerMessage::Spec { spec, clocks, streams } => {
                    if !(1..=MAX_STREAMS).contains(&streams) {
                        return Err(Failure::Protocol(format!("{streams} bulk streams")));
                    }
                    self.enter(Phase::Preparing)?;
                    let lacks = self.prepare(spec, clocks)?;
                    link.send(&PeerMessage::Prepared {
                        lacks: lacks.clone(),
                        codecs: Codec::ALL.map(|codec| codec as u8).to_vec(),
                    })?;
                    if !lacks.is_empty() {
                        return Err(Failure::Refused(lacks));
                    }
                    self.take_streams(link, streams)?;
                    self.enter(Phase::PreCopy)?;
                }
                PeerMessage::Mounts(mounts) => {
                    let lacks = self.mounts(&mounts)?;
                    link.send(&PeerMessage::MountsMade(lacks.clone()))?;
                    if !lacks.is_empty() {
                        return Err(Failure::Refused(lacks));
                    }
                }
                PeerMessage::Shape { generation, shape } => {
                    self.reconcile(generation, &shape)?;
                }
                PeerMessage::Groups { generation, groups } => self.take_groups(generation, &groups)?,
                PeerMessage::Ahead(ahead) => {
                    self.engine.as_mut().ok_or_else(nothing_built)?.prepare(&ahead)?
                }
                PeerMessage::Warm { .. } => {}
                PeerMessage::RoundEnd { index } => {
                    self.await_round(index)?;
                    failpoint("session-target-precopy-round")?;
                    link.send(&PeerMessage::RoundDone { index })?;
                }
                PeerMessage::Switchover { index, image, host, held } => {
                    account::begin(arrived);
                    self.enter(Phase::Switchover)?;
                    let ready = self.restore(index, &image, &host)?;
                    failpoint("session-target-switchover-ready")?;
                    let steps = switchover::named(account::take());
                    account::end();
                    let told = link.send(&PeerMessage::Ready { took: arrived.elapsed(), steps });
                    if let Err(error) = told {
                        // Journaled and complete: from now on its source decides, however it is reached.
                        tracing::warn!(%error, "cannot tell Ready");
                    }
                    self.publish.event("ready; waiting for the source's decision");
                    return Ok((ready, held));
                }
                PeerMessage::Abort { reason } => return Err(Failure::Cancelled(reason)),
                // `step` lets nothing else through before Ready.
                other => return Err(Failure::Protocol(format!("unexpected {}", other.name()))),
            }
        }
    }

    fn enter(&mut self, phase: Phase) -> Result<(), Failure> {
        self.span = tracing::info_span!("phase", phase = phase.name());
        self.publish.update(|status| status.phase = phase);
        failpoint(&format!("session-target-{}-begin", phase.name()))
    }

    /// The next message; questions by other connections are answered meanwhile.
    fn hear(&mut self, link: &mut Link) -> Result<PeerMessage, Failure> {
        if let Some(message) = self.early.take() {
            return Ok(message);
        }
        let (inbox, cancel, gate) = (&self.inbox, &self.cancel, &self.gate);
        let mut aborted = None;
        let heard = loop {
            let before = gate.progress();
            let heard = link.recv(SILENCE, &mut || {
                while let Ok(mail) = inbox.try_recv() {
                    if matches!(mail.message, PeerMessage::Abort { .. }) {
                        aborted = Some(mail);
                    } else {
                        // Nothing here can be committed yet.
                        let _ = mail.reply.send(PeerMessage::Later);
                    }
                }
                aborted.is_some() || cancel.is_cancelled()
            });
            // A long round is silent on this connection and busy on the other.
            if !matches!(heard, Err(LinkError::Timeout { .. })) || gate.progress() == before {
                break heard;
            }
        };
        match (heard, aborted) {
            (_, Some(mail)) => {
                let _ = mail.reply.send(PeerMessage::Done);
                Err(Failure::Cancelled("the source aborted".to_owned()))
            }
            (Ok(message), None) => Ok(message),
            (Err(LinkError::Interrupted), None) => Err(Failure::Cancelled(self.cancel.reason())),
            (Err(error), None) => Err(error.into()),
        }
    }

    /// What the node lacks for it; empty when the sandbox stands.
    fn prepare(&mut self, spec: Vec<u8>, clocks: Distance) -> Result<Vec<image::Refusal>, Failure> {
        self.agent.journal.append(&[Record::Begin(self.begin.clone())])?;
        failpoint("session-target-preparing-begun")?;
        let request = Incoming {
            container: self.begin.container.clone(),
            migration: self.begin.migration.clone(),
            epoch: self.begin.epoch,
            spec,
            clocks,
        };
        self.container = match self.agent.node.incoming(&request) {
            Err(PortError::Refused(lacks)) => return Ok(lacks),
            made => Some(made?),
        };
        failpoint("session-target-preparing-sandbox")?;
        Ok(Vec::new())
    }

    /// What the node lacks for it; empty when it was done.
    fn mounts(&mut self, mounts: &[u8]) -> Result<Vec<image::Refusal>, Failure> {
        failpoint("session-target-preparing-mounts")?;
        match self.container.as_mut().ok_or_else(nothing_built)?.mounts(mounts) {
            Ok(()) => Ok(Vec::new()),
            Err(PortError::Refused(lacks)) => Ok(lacks),
            Err(error) => Err(error.into()),
        }
    }

    fn reconcile(&mut self, generation: u32, shape: &image::shape::Shape) -> Result<(), Failure> {
        let mut engine = match self.engine.take() {
            Some(engine) => engine,
            None => {
                let container = self.container.as_mut().ok_or_else(nothing_built)?;
                Target::build(container.options()?)?
            }
        };
        let reconciled = engine.reconcile(shape);
        let writer = engine.writer();
        self.engine = Some(engine);
        reconciled?;
        self.gate.open(generation, writer);
        Ok(())
    }

    fn take_groups(&mut self, generation: u32, groups: &image::groups::Groups) -> Result<(), Failure> {
        let (Some(container), Some(engine)) = (self.container.as_mut(), self.engine.as_ref()) else {
            return Err(nothing_built());
        };
        for note in container.groups(groups, &groups::tasks(engine))? {
            self.publish.event(note);
        }
        failpoint("session-target-precopy-groups")?;
        self.gate.open(generation, engine.writer());
        Ok(())
    }

    /// From the image to a Ready copy that is in the journal.
    fn restore(
        &mut self,
        index: u32,
        image: &Image,
        host: &[HostState],
    ) -> Result<engine::target::Ready, Failure> {
        self.await_round(index)?;
        // No page comes after the last round.
        self.gate.close();
        account::lap("restore.pages");
        failpoint("session-target-switchover-pages")?;
        let container = self.container.as_mut().ok_or_else(nothing_built)?;
        // Sockets rely on addresses, and packets on rules.
        container.final_state(host)?;
        account::lap("restore.network");
        let engine = self.engine.as_ref().ok_or_else(nothing_built)?;
        container.settle_mounts(engine.pid_namespaces()?)?;
        account::lap("restore.mounts");
        let mut engine = self.engine.take().ok_or_else(nothing_built)?;
        let times = match engine.restore(image, container.externals()) {
            Ok(times) => times,
            Err(error) => {
                engine.discard();
                return Err(error.into());
            }
        };
        tracing::debug!(?times, "restored");
        if let Err(failure) = failpoint("session-target-switchover-restored") {
            engine.discard();
            return Err(failure);
        }
        let began = Instant::now();
        let limited = failpoint("session-target-switchover-limits")
            .and_then(|()| Ok(container.limits(&groups::tasks(&engine))?));
        if let Err(failure) = limited {
            engine.discard();
            return Err(failure);
        }
        tracing::debug!(took = ?began.elapsed(), "limits applied");
        account::lap("restore.limits");
        let ready = engine.ready()?;
        let recorded = failpoint("session-target-switchover-frozen")
            .and_then(|()| Ok(container.ready(ready.root_pid())?))
            .and_then(|()| {
                let Begin { container, epoch, .. } = &self.begin;
                let boot = self.agent.boot.clone();
                Ok(self.agent.journal.append(&[Record::Ready {
                    container: container.clone(),
                    epoch: *epoch,
                    boot,
                }])?)
            });
        account::lap("restore.record");
        match recorded {
            Ok(()) => Ok(ready),
            Err(failure) => {
                ready.discard();
                Err(failure)
            }
        }
    }

    /// Removes everything; only before Ready.
    fn discard(mut self, failure: &Failure) {
        // Nothing may write into the copy while it is removed.
        self.gate.close();
        for reading in &self.bulk {
            let _ = reading.socket.shutdown(Shutdown::Both);
        }
        for reading in self.bulk.drain(..) {
            if reading.thread.join().is_err() {
                tracing::error!("the thread of a bulk stream panicked");
            }
        }
        self.publish.update(|status| status.refusals = failure.refusals().to_vec());
        self.publish.event(format!("discarding the copy: {}", failure.text()));
        if let Some(engine) = self.engine.take() {
            engine.discard();
        }
        if let Some(mut container) = self.container.take() {
            return end_discarded(&self.agent, &self.begin, &self.publish, &mut *container, &failure.text());
        }
        if self.agent.journal.entry(&self.begin.container).open.is_some_and(|open| open.begin == self.begin) {
            let end = End::Discarded;
            let record =
                Record::Ended { container: self.begin.container.clone(), epoch: self.begin.epoch, end };
            if let Err(error) = self.agent.journal.append(&[record]) {
                tracing::warn!(%error, "cannot journal the end of a discarded copy; a restart will look again");
            }
        }
        let mut table = self.agent.table();
        if table.targets.get(&self.begin.container).is_some_and(|handle| handle.epoch == self.begin.epoch) {
            table.targets.remove(&self.begin.container);
        }
        drop(table);
        self.publish.end(failure.phase(), failure.reason(), failure.text());
    }
}

fn nothing_built() -> Failure {
    Failure::Protocol("nothing has been built yet".to_owned())
}
