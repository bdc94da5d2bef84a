//! What an evacuation does next. Pure: its record, what the cluster is and what was checked in; the changed record and
//! what is to be done out.
//!
//! What is to be done is said again by every step until its effect is seen, and never twice with two effects: a
//! migration gets its name in the record before it is created. So a coordinator may end between any two steps.

use std::time::{Duration, SystemTime};

use proto::v1::{ContainerState, EvacuationItem, EvacuationPhase, ItemState, Phase, Refusal};

use super::world::{Action, Check, Seen, Todo, World};
use crate::core::{camel, set_condition};
use crate::place::{self, Bar, Choice, Loads, Verdict};
use crate::store::EvacuationRecord;

#[cfg(test)]
mod tests;

/// Tries that one container gets.
pub(crate) const MAX_ATTEMPTS: u32 = 5;
/// The wait after the first failed try; doubled after each.
const FIRST_WAIT: Duration = Duration::from_secs(5);
/// The longest wait.
const LONGEST_WAIT: Duration = Duration::from_secs(120);
/// Migrations at once when the spec does not say.
pub(crate) const PARALLEL: u32 = 2;

/// Why nothing may begin any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    Cancelled { now: bool },
    Expired,
}

/// Whether an item has come to its end.
pub(crate) fn is_settled(state: ItemState) -> bool {
    matches!(state, ItemState::Moved | ItemState::Stays | ItemState::Gone)
}

/// The next step. Nothing is changed once the record is over.
pub(crate) fn step(record: &mut EvacuationRecord, world: &World) -> Todo {
    let mut todo = Todo::default();
    if record.is_over() {
        return todo;
    }
    let stop = stop(record, world);
    if stop.is_none() {
        begin(record, world, &mut todo);
    }
    take_in(record, world);
    for index in 0..record.evacuation.items.len() {
        match record.evacuation.items[index].state() {
            ItemState::Migrating => follow(record, index, world, stop, &mut todo),
            ItemState::Waiting | ItemState::Retrying => look(record, index, world),
            _ => {}
        }
    }
    match stop {
        Some(stop) => leave(record, stop),
        None if record.evacuation.phase() == EvacuationPhase::Running => start(record, world, &mut todo),
        None => {}
    }
    finish(record, world, stop);
    let items = record.evacuation.items.iter().filter(|item| item.state() == ItemState::Retrying);
    let times = items.filter_map(|item| item.retry_at).chain(record.deadline_at.filter(|_| stop.is_none()));
    todo.wake = times.filter_map(|time| SystemTime::try_from(time).ok()).min();
    todo
}

/// A migration that the record names could not be created, for a reason that passes by itself.
pub(crate) fn not_created(record: &mut EvacuationRecord, container: &str, migration: &str, why: &str) {
    let items = &mut record.evacuation.items;
    let item = items
        .iter_mut()
        .find(|i| i.container == container && i.migration == migration && i.state() == ItemState::Migrating);
    if let Some(item) = item {
        item.attempts = item.attempts.saturating_sub(1);
        wait(item, "Waiting", why);
    }
}

fn stop(record: &EvacuationRecord, world: &World) -> Option<Stop> {
    let deadline = record.deadline_at.and_then(|time| SystemTime::try_from(time).ok());
    if !record.cancelled_by.is_empty() {
        Some(Stop::Cancelled { now: record.cancel_now })
    } else if deadline.is_some_and(|deadline| deadline <= world.now) {
        Some(Stop::Expired)
    } else {
        None
    }
}

fn is_undo(record: &EvacuationRecord) -> bool {
    record.evacuation.spec.as_ref().is_some_and(|spec| spec.undo)
}

fn begin(record: &mut EvacuationRecord, world: &World, todo: &mut Todo) {
    if record.evacuation.phase() == EvacuationPhase::Pending {
        record.evacuation.set_phase(EvacuationPhase::Running);
    }
    if is_undo(record) {
        return;
    }
    if world.cordoned {
        let message = format!("{} takes nothing new", record.node());
        set_condition(&mut record.evacuation.conditions, "Cordoned", "True", "Drained", &message);
    } else {
        todo.actions.push(Action::Cordon);
    }
}

/// Containers of the node that no item knows, the largest first: they are the hardest to place.
fn take_in(record: &mut EvacuationRecord, world: &World) {
    if is_undo(record) {
        return;
    }
    let node = record.node().to_owned();
    let known = |name: &str| record.evacuation.items.iter().any(|item| item.container == name);
    let mut new: Vec<(&String, &Seen)> = world
        .containers
        .iter()
        .filter(|(name, seen)| {
            let lost = || world.busy.get(*name).is_some_and(|busy| busy.unknown);
            let here = match seen.state {
                ContainerState::Running | ContainerState::Migrating => true,
                // Of a migration whose outcome is unknown; any other frozen copy is about to go.
                ContainerState::Frozen => lost(),
                _ => false,
            };
            seen.node == node && here && !known(name)
        })
        .collect();
    new.sort_by(|(a_name, a), (b_name, b)| b.memory.cmp(&a.memory).then_with(|| a_name.cmp(b_name)));
    for (name, _) in new {
        record.log(format!("{name} is on {node}"));
        record.evacuation.items.push(EvacuationItem {
            container: name.clone(),
            state: ItemState::Waiting.into(),
            source_node: node.clone(),
            ..EvacuationItem::default()
        });
    }
}

fn wait(item: &mut EvacuationItem, reason: &str, message: &str) {
    item.set_state(ItemState::Waiting);
    item.reason = reason.to_owned();
    item.message = message.to_owned();
    item.migration.clear();
    item.target_node.clear();
    item.retry_at = None;
}

fn settle(record: &mut EvacuationRecord, index: usize, state: ItemState, reason: &str, message: String) {
    let item = &mut record.evacuation.items[index];
    item.set_state(state);
    item.reason = reason.to_owned();
    item.message = message;
    item.retry_at = None;
    let word = match state {
        ItemState::Moved => "has moved",
        ItemState::Gone => "is gone",
        _ => "stays",
    };
    let line = format!("{} {word}: {}", item.container, item.message);
    record.log(line);
}

fn refused(record: &mut EvacuationRecord, index: usize, refusals: Vec<Refusal>) {
    let message = refusals.iter().map(told).collect::<Vec<_>>().join("; ");
    record.evacuation.items[index].refusals = refusals;
    settle(record, index, ItemState::Stays, "Refused", message);
}

fn told(refusal: &Refusal) -> String {
    let place = match refusal.pid {
        0 => refusal.subject.clone(),
        pid => format!("pid {pid} {}", refusal.subject),
    };
    match refusal.way_out.as_str() {
        "" => format!("{place}: {}", refusal.reason),
        way_out => format!("{place}: {} ({way_out})", refusal.reason),
    }
}

/// A try failed: the next one comes later, or none any more.
fn retry(record: &mut EvacuationRecord, index: usize, why: &str, world: &World) {
    let item = &mut record.evacuation.items[index];
    if item.attempts >= MAX_ATTEMPTS {
        let message = format!("{} tries failed; the last: {why}", item.attempts);
        return settle(record, index, ItemState::Stays, "TriesFailed", message);
    }
    let pause = backoff(item.attempts, world.jitter);
    item.set_state(ItemState::Retrying);
    item.reason = "TryFailed".to_owned();
    item.message = why.to_owned();
    item.retry_at = Some((world.now + pause).into());
    let line =
        format!("{}: try {} failed: {why}; again in {} s", item.container, item.attempts, pause.as_secs());
    record.log(line);
}

/// Doubles from five seconds to two minutes; up to half of it more is added by the jitter.
fn backoff(attempts: u32, jitter: f64) -> Duration {
    let doubled = FIRST_WAIT.saturating_mul(1 << attempts.saturating_sub(1).min(8));
    doubled.mul_f64(1.0 + jitter.clamp(0.0, 1.0) / 2.0).min(LONGEST_WAIT)
}

/// A migration of ours is under way, or has ended.
fn follow(record: &mut EvacuationRecord, index: usize, world: &World, stop: Option<Stop>, todo: &mut Todo) {
    let item = &mut record.evacuation.items[index];
    let name = item.migration.clone();
    let Some(found) = world.migrations.get(&name) else {
        match stop {
            // Not created yet, and never to be.
            Some(_) => {
                item.attempts = item.attempts.saturating_sub(1);
                wait(item, "Waiting", "");
            }
            None => todo.actions.push(Action::Create(item.container.clone())),
        }
        return;
    };
    if !found.ours {
        item.attempts = item.attempts.saturating_sub(1);
        return wait(item, "Waiting", &format!("the name {name} is another migration's"));
    }
    match found.phase {
        Phase::Succeeded => {
            item.target_node = found.target.clone();
            let message = format!("to {} by {name}", found.target);
            settle(record, index, ItemState::Moved, "Moved", message);
        }
        Phase::Cancelled => {
            let reason = match stop {
                Some(stop) => stop_reason(stop),
                None => "MigrationCancelled",
            };
            settle(record, index, ItemState::Stays, reason, format!("{name} was {}", found.message));
        }
        Phase::OutcomeUnknown => {
            let message = format!("nobody can tell how {name} ended: see `migrate resolve`");
            settle(record, index, ItemState::Stays, "OutcomeUnknown", message);
        }
        Phase::Failed if !found.refusals.is_empty() => refused(record, index, found.refusals.clone()),
        Phase::Failed if found.reason == "Refused" => {
            settle(record, index, ItemState::Stays, "Refused", found.message.clone());
        }
        Phase::Failed => {
            let why = format!("{name} failed: {}", found.message);
            match world.containers.get(&item.container) {
                Some(seen) if seen.state != ContainerState::Stopped => retry(record, index, &why, world),
                // It has stopped or was deleted; the next look says so.
                _ => wait(item, "Waiting", &why),
            }
        }
        phase => {
            item.reason = camel(phase.as_str_name().trim_start_matches("PHASE_"));
            let cancels = match stop {
                Some(Stop::Cancelled { now }) => now || !found.admitted,
                Some(Stop::Expired) => !found.admitted,
                None => false,
            };
            // Committed: it is too late, and it will be over in a moment.
            if cancels && !found.cancelled && phase != Phase::Completing {
                todo.actions.push(Action::Cancel(name));
            }
        }
    }
}

/// Whether a container that waits is still there to be moved.
fn look(record: &mut EvacuationRecord, index: usize, world: &World) {
    let item = &record.evacuation.items[index];
    let (name, source) = (item.container.clone(), item.source_node.clone());
    let busy = world.busy.get(&name);
    match world.containers.get(&name) {
        None => settle(record, index, ItemState::Gone, "Deleted", "it was deleted".into()),
        Some(seen) if seen.node != source && busy.is_none() => {
            let message = format!("it is on {}, and this evacuation did not move it there", seen.node);
            settle(record, index, ItemState::Gone, "Elsewhere", message);
        }
        Some(seen) if seen.state == ContainerState::Stopped => {
            settle(record, index, ItemState::Gone, "Stopped", "it has stopped".into());
        }
        Some(_) => {
            if let Some(busy) = busy.filter(|busy| busy.unknown) {
                let message = format!("nobody can tell how {} ended: see `migrate resolve`", busy.migration);
                settle(record, index, ItemState::Stays, "OutcomeUnknown", message);
            }
        }
    }
}

fn stop_reason(stop: Stop) -> &'static str {
    match stop {
        Stop::Cancelled { .. } => "Cancelled",
        Stop::Expired => "DeadlineExceeded",
    }
}

/// Nothing begins any more: what waits stays.
fn leave(record: &mut EvacuationRecord, stop: Stop) {
    for index in 0..record.evacuation.items.len() {
        let item = &record.evacuation.items[index];
        if matches!(item.state(), ItemState::Waiting | ItemState::Retrying) {
            let why = match stop {
                Stop::Cancelled { .. } => "the evacuation was cancelled",
                Stop::Expired => "the deadline has passed",
            };
            let message = match item.message.as_str() {
                "" => why.to_owned(),
                last => format!("{why}; before that: {last}"),
            };
            settle(record, index, ItemState::Stays, stop_reason(stop), message);
        }
    }
}

/// Begins what may begin: a check, and with its result a migration.
fn start(record: &mut EvacuationRecord, world: &World, todo: &mut Todo) {
    if let Some(silent) = &world.silent {
        // It may be the one that fits; before long it is heard or given up.
        let waiting = record.evacuation.items.iter_mut().filter(|item| item.state() == ItemState::Waiting);
        waiting.for_each(|item| item.message = format!("waits for {silent}, which is silent"));
        return;
    }
    let spec = record.evacuation.spec.clone().unwrap_or_default();
    let parallel = if spec.max_parallel == 0 { PARALLEL } else { spec.max_parallel };
    let mut loads = world.loads.clone();
    let mut running = 0;
    for item in record.evacuation.items.iter().filter(|item| item.state() == ItemState::Migrating) {
        running += 1;
        // One that was created is promised its room already.
        if let (false, Some(seen)) =
            (world.migrations.contains_key(&item.migration), world.containers.get(&item.container))
        {
            loads.add(&item.source_node, &item.target_node, seen.memory, &item.container, &seen.labels);
        }
    }
    for index in 0..record.evacuation.items.len() {
        if running >= parallel {
            return;
        }
        let item = &mut record.evacuation.items[index];
        let due = |time| SystemTime::try_from(time).is_ok_and(|time| time <= world.now);
        match item.state() {
            ItemState::Waiting => {}
            ItemState::Retrying if item.retry_at.is_none_or(due) => {}
            _ => continue,
        }
        if let Some(busy) = world.busy.get(&item.container) {
            item.set_state(ItemState::Waiting);
            item.message = format!("waits for {}, which moves it", busy.migration);
            continue;
        }
        if world.containers.get(&item.container).is_none_or(|seen| seen.state != ContainerState::Running) {
            continue;
        }
        let name = item.container.clone();
        let Some(check) = world.checks.get(&name) else {
            todo.actions.push(Action::Check(name));
            running += 1;
            continue;
        };
        if *check == Check::UnderWay {
            running += 1;
            continue;
        }
        todo.used.push(name);
        running += u32::from(use_check(record, index, check, &mut loads, world, todo));
    }
}

/// What a check allows. Answers whether a migration begins.
fn use_check(
    record: &mut EvacuationRecord,
    index: usize,
    check: &Check,
    loads: &mut Loads,
    world: &World,
    todo: &mut Todo,
) -> bool {
    let item = &mut record.evacuation.items[index];
    match check {
        Check::UnderWay => false,
        Check::Refused(refusals) => {
            refused(record, index, refusals.clone());
            false
        }
        Check::Failed(why) => {
            item.attempts += 1;
            retry(record, index, why, world);
            false
        }
        Check::Movable { migration, needs, fit, unfit } => {
            let mut fit = fit.clone();
            for candidate in &mut fit {
                candidate.load = loads.of(&candidate.name);
            }
            item.attempts += 1;
            match place::choose(needs, &fit) {
                Ok(Choice { node: target, .. }) => {
                    loads.add(&item.source_node, &target, needs.memory, &item.container, &needs.labels);
                    let line = format!("{} moves to {target} as {migration}", item.container);
                    item.set_state(ItemState::Migrating);
                    item.reason = "Pending".to_owned();
                    item.message.clear();
                    item.retry_at = None;
                    item.target_node = target;
                    item.migration.clone_from(migration);
                    todo.actions.push(Action::Create(item.container.clone()));
                    record.log(line);
                    true
                }
                Err(full) => {
                    let verdicts: Vec<&Verdict> = full.iter().chain(unfit).collect();
                    let why = match verdicts.is_empty() {
                        true => "there is no other node".to_owned(),
                        false => {
                            let all: Vec<_> = verdicts.iter().map(ToString::to_string).collect();
                            format!("no node takes it: {}", all.join("; "))
                        }
                    };
                    if verdicts.iter().any(|verdict| verdict.bar < Bar::Never) {
                        retry(record, index, &why, world);
                    } else {
                        settle(record, index, ItemState::Stays, "NoCandidate", why);
                    }
                    false
                }
            }
        }
    }
}

/// Ends it when every item has come to its end, and nothing more comes to the node.
fn finish(record: &mut EvacuationRecord, world: &World, stop: Option<Stop>) {
    let items = &record.evacuation.items;
    if !items.iter().all(|item| is_settled(item.state())) {
        return;
    }
    if stop.is_none() {
        if record.evacuation.phase() == EvacuationPhase::Pending {
            return;
        }
        if !(is_undo(record) || world.cordoned && world.coming.is_empty()) {
            if let Some(coming) = world.coming.first() {
                record.log(format!("waits for {coming}, which comes to {}", record.node()));
            }
            return;
        }
    }
    let count = |state| items.iter().filter(|item| item.state() == state).count();
    let (moved, stays, gone) = (count(ItemState::Moved), count(ItemState::Stays), count(ItemState::Gone));
    let left: Vec<String> = items
        .iter()
        .filter(|item| item.state() == ItemState::Stays)
        .map(|item| format!("{} ({})", item.container, item.message))
        .collect();
    let mut message = format!("{moved} moved, {gone} gone");
    if stays > 0 {
        message = format!("{message}, {stays} stay: {}", left.join("; "));
    }
    if world.cordoned && !is_undo(record) {
        message = format!("{message}. {} stays cordoned", record.node());
    }
    let (phase, reason) = match stop {
        Some(Stop::Cancelled { .. }) => (EvacuationPhase::Cancelled, "Cancelled"),
        _ if stays == 0 => (EvacuationPhase::Succeeded, "AllMoved"),
        Some(Stop::Expired) => (EvacuationPhase::Failed, "DeadlineExceeded"),
        None => (EvacuationPhase::Failed, "SomeStay"),
    };
    let status = if phase == EvacuationPhase::Succeeded { "True" } else { "False" };
    record.log(format!("ends: {message}"));
    let e = &mut record.evacuation;
    set_condition(&mut e.conditions, "Succeeded", status, reason, &message);
    e.set_phase(phase);
    e.reason = reason.to_owned();
    e.message = message;
    e.finished = Some(world.now.into());
}
