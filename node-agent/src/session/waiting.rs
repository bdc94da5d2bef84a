//! A Ready copy at the target, from Ready to the decision: its source's Commit or Abort, an answer to its own
//! question, or an operator's word. No clock decides.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use engine::account;
use engine::target::Ready;

use super::agent::{Agent, Cancel, Mail, Publisher, Serving, TargetHandle, set_frozen};
use super::failure::AbortOnPanic;
use super::ports::{ContainerTarget, EthernetFrame};
use super::recover::{Backoff, retry, target_demand};
use super::status::Phase;
use super::switchover::named;
use crate::commit::{self, Answer, OnAnswer, OnCommit, OnDiscard, Owner, TargetRestart};
use crate::journal::{Begin, End, Record};
use crate::peer;
use crate::telemetry::chain;
use crate::transfer::TELLS_NO_ANSWER;
use crate::transfer::link::{Link, LinkError};
use crate::transfer::message::PeerMessage;

/// How long is waited at most for frames that were on their way to the source when the container was announced. What
/// arrives directly waits for them.
const STRAGGLERS: Duration = Duration::from_millis(5);
/// How long late frames are taken after the takeover.
const LATE: Duration = Duration::from_secs(5);
/// How long after the thaw Ack waits at most for the container's first answer, so that it can be told. The container runs.
const SERVED: Duration = Duration::from_millis(25);

/// A complete copy, frozen, and what decides about it.
pub(super) struct Waiting {
    pub(super) agent: Arc<Agent>,
    pub(super) begin: Begin,
    pub(super) publish: Publisher,
    pub(super) container: Box<dyn ContainerTarget>,
    /// The engine's handle; gone after a restart of the agent, when the cgroup alone holds the copy.
    pub(super) ready: Option<Ready>,
    pub(super) link: Option<Link>,
    pub(super) inbox: Receiver<Mail>,
    /// Frames that came with the image.
    pub(super) held: Vec<EthernetFrame>,
}

enum Word {
    Commit(Vec<EthernetFrame>, Instant),
    Abort,
}

impl Waiting {
    /// Waits for the decision and obeys it. The container runs here, or nothing of it is left, on return.
    pub(super) fn decide(mut self) {
        let _guard = AbortOnPanic;
        let mut backoff = Backoff::new();
        let mut asked = Instant::now();
        let mut pause = Duration::ZERO;
        loop {
            if let Some(owner) = self.agent.resolution(&self.begin.container, self.begin.epoch) {
                return match owner {
                    Owner::Target => self.take(Vec::new(), Instant::now(), None),
                    Owner::Source => self.discard("an operator said that the source owns it"),
                };
            }
            match self.listen() {
                Some((Word::Commit(frames, at), mail)) => {
                    let view = self.agent.target_view(&self.begin.container);
                    if commit::target_on_commit(&view, self.begin.epoch) == OnCommit::Take {
                        return self.take(frames, at, mail);
                    }
                }
                Some((Word::Abort, mail)) => {
                    let view = self.agent.target_view(&self.begin.container);
                    if commit::target_on_abort(&view, self.begin.epoch) == OnDiscard::Discard {
                        answer(mail, PeerMessage::Done);
                        return self.discard("the source aborted");
                    }
                }
                None => {}
            }
            if self.link.is_none() && asked.elapsed() >= pause {
                match self.ask() {
                    OnAnswer::Take => return self.take(Vec::new(), Instant::now(), None),
                    OnAnswer::Discard => return self.discard("the source had aborted"),
                    OnAnswer::Wait => {}
                }
                pause = backoff.next();
                asked = Instant::now();
            }
        }
    }

    /// One word from the connection or the inbox, if one comes soon.
    fn listen(&mut self) -> Option<(Word, Option<Mail>)> {
        let mail = match self.link.as_mut() {
            Some(link) => {
                let mut mail = None;
                let inbox = &self.inbox;
                let heard = link.recv(Duration::from_secs(1), &mut || {
                    mail = inbox.try_recv().ok();
                    mail.is_some()
                });
                let at = Instant::now();
                match heard {
                    Ok(PeerMessage::Commit { held }) => return Some((Word::Commit(held, at), None)),
                    Ok(PeerMessage::Abort { reason }) => {
                        self.publish.event(format!("the source aborts: {reason}"));
                        return Some((Word::Abort, None));
                    }
                    Ok(other) => {
                        tracing::warn!(
                            message = other.name(),
                            "out of order for a Ready copy; closing the connection"
                        );
                        self.link = None;
                    }
                    Err(LinkError::Timeout { .. } | LinkError::Interrupted) => {}
                    Err(error) => {
                        if error.is_violation() {
                            tracing::warn!(error = %chain(&error), "closing the connection of a Ready copy");
                        }
                        self.publish.event(format!("lost the source ({error}); the copy waits and asks"));
                        self.link = None;
                    }
                }
                mail
            }
            None => match self.inbox.recv_timeout(Duration::from_millis(100)) {
                Ok(mail) => Some(mail),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => {
                    thread::sleep(Duration::from_millis(100));
                    None
                }
            },
        }?;
        match &mail.message {
            PeerMessage::Commit { held } => Some((Word::Commit(held.clone(), Instant::now()), Some(mail))),
            PeerMessage::Abort { .. } => Some((Word::Abort, Some(mail))),
            _ => None,
        }
    }

    /// Asks the source, then the coordinator.
    fn ask(&self) -> OnAnswer {
        let Begin { peer, peer_address, container, migration, epoch, .. } = &self.begin;
        let question = peer::ask(
            &self.agent,
            peer,
            peer_address,
            &self.begin,
            &PeerMessage::Query,
            peer::ANSWER_TIMEOUT,
        );
        let decision = match question {
            Ok(PeerMessage::Answer(decision)) => Some(decision),
            Ok(_) => None,
            Err(error) => {
                tracing::warn!(error = %chain(&error), container, "the source of a Ready copy does not answer");
                None
            }
        };
        let decision = match decision {
            Some(decided @ (Answer::Committed | Answer::Aborted)) => decided,
            // A source that is undecided knows better than whoever relays its word.
            Some(Answer::Undecided) => Answer::Undecided,
            Some(Answer::Unknown) | None => {
                self.publish.update(|status| {
                    status.phase = Phase::OutcomeUnknown;
                    "SourceSilent".clone_into(&mut status.reason);
                    "a complete copy waits here, frozen; its source does not tell"
                        .clone_into(&mut status.message);
                });
                self.agent.decisions.ask(migration, *epoch).unwrap_or(Answer::Unknown)
            }
        };
        commit::target_on_answer(&self.agent.target_view(container), *epoch, decision)
    }

    /// Takes ownership. Goes on until it is done: after COMMIT_SEEN there is no way back.
    pub(super) fn take(mut self, late: Vec<EthernetFrame>, told: Instant, mail: Option<Mail>) {
        let _guard = AbortOnPanic;
        account::begin(told);
        let (container, epoch) = (self.begin.container.clone(), self.begin.epoch);
        let seen = Record::CommitSeen { container: container.clone(), epoch };
        retry("journal the takeover", &self.publish, || {
            self.agent.journal.append(std::slice::from_ref(&seen))
        });
        pass("session-target-completing-seen");
        let _span = tracing::info_span!("phase", phase = Phase::Completing.name()).entered();
        self.publish.update(|status| status.phase = Phase::Completing);
        account::lap("network.journal");
        retry("attach the container's network", &self.publish, || self.container.attach());
        pass("session-target-completing-attached");
        account::lap("network.attach");
        // Before anybody can know that it is here: what was held comes before what arrives directly.
        self.held.extend(late);
        deliver(&mut *self.container, &self.held);
        account::lap("network.deliver");
        if let Err(error) = self.container.announce() {
            tracing::warn!(error = %chain(&error), "cannot announce the container's addresses");
        }
        account::lap("network.announce");
        // Its first answer may have left before the thaw returns.
        let thawing = SystemTime::now();
        let resumed_by_engine = self.ready.take().is_some_and(|ready| match ready.resume() {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(error = %chain(&error), "engine: resume failed; writing cgroup.freeze");
                false
            }
        });
        if !resumed_by_engine {
            let cgroup = self.container.cgroup();
            retry("thaw the container", &self.publish, || set_frozen(&cgroup, false));
        }
        account::lap("network.thaw");
        let (resumed, steps) = (told.elapsed(), named(account::take()));
        let (thawed, thaw) = (Instant::now(), thawing.elapsed().unwrap_or_default());
        account::end();
        pass("session-target-completing-thawed");
        self.stragglers();
        retry("open the container's network", &self.publish, || self.container.open());
        if let Err(error) = self.container.open() {
            tracing::debug!(error = %chain(&error), "the last frames that waited are lost");
        }
        retry("record the container", &self.publish, || self.container.adopt(epoch));
        let owned = Record::Owned { container, epoch };
        retry("journal the ownership", &self.publish, || {
            self.agent.journal.append_sync(std::slice::from_ref(&owned))
        });
        pass("session-target-completing-owned");
        // From here on OWNED answers; the container may be moved on as soon as the source has heard.
        self.agent.table().targets.remove(&self.begin.container);
        self.tell_served(thawing, thaw, SERVED.saturating_sub(thawed.elapsed()));
        let ack = PeerMessage::Ack { resumed, took: told.elapsed(), steps };
        if let Some(link) = self.link.as_mut()
            && let Err(error) = link.send(&ack)
        {
            tracing::warn!(%error, "cannot send Ack; the source will ask again");
        }
        answer(mail, ack);
        self.publish.event(format!(
            "took over: attached, announced, {} frames delivered, resumed in {:.1} ms",
            self.held.len(),
            resumed.as_secs_f64() * 1e3
        ));
        self.publish.end(Phase::Succeeded, "Committed", "it runs here");
        self.container.look_away();
        self.late_frames();
    }

    /// Delivers what still went to the source when the container was announced here.
    fn stragglers(&mut self) {
        let until = Instant::now() + STRAGGLERS;
        let Some(link) = self.link.as_mut() else { return };
        // The Ack will find out.
        if link.send(&PeerMessage::Attached).is_err() {
            return;
        }
        while link.wait(until.saturating_duration_since(Instant::now())).is_ok_and(|readable| readable) {
            match link.read() {
                Ok(PeerMessage::Late { frames, last }) => {
                    deliver(&mut *self.container, &frames);
                    if last {
                        return;
                    }
                }
                Ok(other) => tracing::warn!(message = other.name(), "out of order after Commit"),
                // The Ack will find out.
                Err(_) => return,
            }
        }
    }

    /// Says when the container answered first, if the source can hear it. Its thaw began at `thawing` and took `thaw`.
    fn tell_served(&mut self, thawing: SystemTime, thaw: Duration, wait: Duration) {
        let Some(link) = self.link.as_mut().filter(|link| link.version() > TELLS_NO_ANSWER) else { return };
        let Some(after) = self.container.first_served(thawing, wait) else { return };
        let after = after.saturating_sub(thaw);
        // The Ack will find out.
        if let Err(error) = link.send(&PeerMessage::Served { after }) {
            tracing::debug!(%error, "cannot tell the first answer");
        }
    }

    fn late_frames(&mut self) {
        let until = Instant::now() + LATE;
        let Some(link) = self.link.as_mut() else { return };
        while let Ok(message) = link.recv(until.saturating_duration_since(Instant::now()), &mut || false) {
            match message {
                PeerMessage::Late { frames, .. } => deliver(&mut *self.container, &frames),
                // Repeated before it had our Ack.
                PeerMessage::Commit { held } => deliver(&mut *self.container, &held),
                _ => return,
            }
        }
    }

    /// Removes the copy and ends the record.
    fn discard(mut self, why: &str) {
        if let Some(ready) = self.ready.take() {
            ready.discard();
        }
        end_discarded(&self.agent, &self.begin, &self.publish, &mut *self.container, why);
    }
}

/// Removes a copy that will not be used and ends its record.
pub(super) fn end_discarded(
    agent: &Agent,
    begin: &Begin,
    publish: &Publisher,
    container: &mut dyn ContainerTarget,
    why: &str,
) {
    retry("remove the copy", publish, || container.discard());
    ended(agent, begin, publish, End::Discarded);
    publish.end(Phase::Failed, "Discarded", why);
}

fn ended(agent: &Agent, begin: &Begin, publish: &Publisher, end: End) {
    let record = Record::Ended { container: begin.container.clone(), epoch: begin.epoch, end };
    retry("journal the end", publish, || agent.journal.append(std::slice::from_ref(&record)));
    let mut table = agent.table();
    if table.targets.get(&begin.container).is_some_and(|handle| handle.epoch == begin.epoch) {
        table.targets.remove(&begin.container);
    }
}

fn deliver(container: &mut dyn ContainerTarget, frames: &[EthernetFrame]) {
    if frames.is_empty() {
        return;
    }
    if let Err(error) = container.deliver(frames) {
        tracing::warn!(error = %chain(&error), frames = frames.len(), "cannot deliver frames; their senders will repeat them");
    }
}

fn answer(mail: Option<Mail>, message: PeerMessage) {
    if let Some(mail) = mail {
        // Whoever asked may have gone; it asks again.
        let _ = mail.reply.send(message);
    }
}

/// A failpoint after COMMIT_SEEN: it may stop or kill the agent there, and nothing else.
fn pass(name: &str) {
    if let Err(failure) = super::failure::failpoint(name) {
        tracing::warn!(%failure, "ignored: the takeover has begun");
    }
}

/// What the journal demands of a target after a restart of its agent.
pub(super) fn recover_target(agent: &Arc<Agent>, begin: Begin, publish: Publisher, inbox: Receiver<Mail>) {
    let mut backoff = Backoff::new();
    let copy = loop {
        match agent.node.reopen(&begin.container, &begin.migration) {
            Ok(copy) => break copy,
            Err(error) => {
                tracing::error!(error = %chain(&error), container = begin.container, "cannot look at a copy; trying again");
                thread::sleep(backoff.next());
            }
        }
    };
    match (target_demand(agent, &begin, copy.is_some()), copy) {
        (TargetRestart::Ask(_), Some(container)) => {
            publish.event("the agent was restarted; a complete copy waits here");
            waiting(agent, begin, publish, container, inbox).decide();
        }
        (TargetRestart::Finish(_), Some(container)) => {
            publish.event("the agent was restarted in the takeover; finishing it");
            waiting(agent, begin, publish, container, inbox).take(Vec::new(), Instant::now(), None);
        }
        (TargetRestart::Lost(_), _) => {
            retry("remove what is left of a copy", &publish, || {
                agent.node.kill_incoming(&begin.container, &begin.migration)
            });
            ended(agent, &begin, &publish, End::Lost);
            publish.end(
                Phase::Failed,
                "CopyLost",
                "the complete copy that waited here died; its source will hear so",
            );
        }
        (TargetRestart::Nothing, _) => {}
        (_, _) => {
            retry("kill an unfinished copy", &publish, || {
                agent.node.kill_incoming(&begin.container, &begin.migration)
            });
            ended(agent, &begin, &publish, End::Discarded);
            publish.end(
                Phase::Failed,
                "AgentRestarted",
                "the agent was restarted before the copy was complete",
            );
        }
    }
}

/// Makes a copy that may have outlived its agent reachable.
pub(super) fn register(agent: &Agent, begin: &Begin) -> Receiver<Mail> {
    let (inbox, receiver) = channel();
    let handle = TargetHandle {
        migration: begin.migration.clone(),
        epoch: begin.epoch,
        source_node: begin.peer.clone(),
        trace: None,
        serving: Some(Serving { cancel: Arc::new(Cancel::default()), bulk: None, inbox }),
    };
    agent.table().targets.insert(begin.container.clone(), handle);
    receiver
}

fn waiting(
    agent: &Arc<Agent>,
    begin: Begin,
    publish: Publisher,
    container: Box<dyn ContainerTarget>,
    inbox: Receiver<Mail>,
) -> Waiting {
    let (ready, link, held) = (None, None, Vec::new());
    Waiting { agent: Arc::clone(agent), begin, publish, container, ready, link, inbox, held }
}
