use proptest::prelude::*;

use super::*;

fn epoch() -> impl Strategy<Value = Epoch> {
    1u64..5
}

fn copy() -> impl Strategy<Value = Copy> {
    prop_oneof![Just(Copy::None), Just(Copy::Running), Just(Copy::Frozen)]
}

fn owner() -> impl Strategy<Value = Owner> {
    prop_oneof![Just(Owner::Source), Just(Owner::Target)]
}

prop_compose! {
    /// Views that an agent can have: COMMITTED only of the open session, nothing above the highest epoch.
    fn source_view()(
        highest in 0u64..5,
        open in proptest::option::of(epoch()),
        committed in proptest::option::of(any::<bool>()),
        relaying in any::<bool>(),
        incoming in any::<bool>(),
        copy in copy(),
    ) -> SourceView {
        let open = open.filter(|open| *open <= highest);
        let committed = open.zip(committed).map(|(epoch, synced)| Committed { epoch, synced });
        SourceView { highest, open, committed, relaying, incoming, copy }
    }
}

prop_compose! {
    /// READY and COMMIT_SEEN only of the expected session.
    fn target_view()(
        highest in 0u64..5,
        expected in proptest::option::of(epoch()),
        ready in any::<bool>(),
        seen in any::<bool>(),
        owned in proptest::option::of(epoch()),
        leaving in any::<bool>(),
        copy in copy(),
    ) -> TargetView {
        let expected = expected.filter(|expected| *expected <= highest);
        let owned = owned.filter(|owned| *owned <= highest && expected.is_none_or(|expected| *owned < expected));
        let ready = expected.filter(|_| ready);
        TargetView { highest, expected, ready, seen: ready.filter(|_| seen), owned, leaving, copy }
    }
}

proptest! {
    #[test]
    fn no_epoch_is_used_twice_or_backwards(view in source_view(), at in epoch()) {
        if source_on_start(&view, at) == OnStart::Begin {
            prop_assert!(at > view.highest);
        }
    }

    #[test]
    fn a_session_begins_only_on_a_free_running_container(view in source_view(), at in epoch()) {
        if source_on_start(&view, at) == OnStart::Begin {
            prop_assert_eq!(view.copy, Copy::Running);
            prop_assert!(view.committed.is_none() && view.open.is_none() && !view.relaying && !view.incoming);
        }
    }

    #[test]
    fn committed_is_answered_only_once_synced_and_aborted_only_with_a_copy(view in source_view(), at in epoch()) {
        match source_on_query(&view, at) {
            Answer::Committed => prop_assert_eq!(view.committed, Some(Committed { epoch: at, synced: true })),
            Answer::Aborted => {
                prop_assert!(view.open != Some(at));
                prop_assert!(view.committed.is_none_or(|committed| committed.epoch != at));
                prop_assert!(view.copy != Copy::None);
                prop_assert!(at <= view.highest);
            }
            Answer::Undecided => prop_assert_eq!(view.open, Some(at)),
            Answer::Unknown => prop_assert!(view.open != Some(at)),
        }
    }

    #[test]
    fn nothing_is_undone_from_the_first_byte_of_committed(view in source_view(), at in epoch()) {
        if let Some(committed) = view.committed {
            prop_assert_ne!(source_on_abort(&view, committed.epoch), OnAbort::Undo);
            prop_assert_eq!(source_on_restart(&view), SourceRestart::Recommit(committed.epoch));
            prop_assert_ne!(source_on_query(&view, committed.epoch), Answer::Aborted);
        }
        if source_on_abort(&view, at) == OnAbort::Undo {
            prop_assert_eq!(view.open, Some(at));
        }
    }

    #[test]
    fn the_source_kills_only_after_proof(view in source_view(), at in epoch(), newer in epoch(), who in proptest::option::of(owner())) {
        let pending = view.committed == Some(Committed { epoch: at, synced: true });
        prop_assert_eq!(source_on_ack(&view, at) == OnAck::Kill, pending);
        prop_assert_ne!(source_on_lost(&view, at), OnAck::Kill);
        if source_on_stale(&view, at, newer, who) == OnAck::Kill {
            prop_assert!(pending && newer > at && who == Some(Owner::Target));
        }
    }

    #[test]
    fn a_restarted_source_tells_abort_only_with_a_copy(view in source_view()) {
        if let SourceRestart::Undo(at) = source_on_restart(&view) {
            prop_assert!(view.copy != Copy::None && view.committed.is_none());
            prop_assert_eq!(view.open, Some(at));
        }
    }

    #[test]
    fn a_ready_copy_obeys_its_source_alone(view in target_view(), at in epoch()) {
        if let Some(ready) = view.ready {
            prop_assert_ne!(target_on_prepare(&view, at), OnPrepare::Expect);
            for answer in [Answer::Undecided, Answer::Unknown] {
                prop_assert_eq!(target_on_answer(&view, ready, answer), OnAnswer::Wait);
            }
        }
    }

    #[test]
    fn a_copy_that_was_taken_over_is_never_discarded(view in target_view(), at in epoch()) {
        for taken in [view.seen, view.owned].into_iter().flatten() {
            prop_assert_eq!(target_on_abort(&view, taken), OnDiscard::Keep);
            prop_assert_ne!(target_on_answer(&view, taken, Answer::Aborted), OnAnswer::Discard);
        }
        if view.seen.is_some() {
            prop_assert_ne!(target_on_resolve(&view, at, Owner::Source, None), OnResolveTarget::Discard);
        }
    }

    #[test]
    fn ack_comes_from_owned_alone(view in target_view(), at in epoch()) {
        prop_assert_eq!(target_on_commit(&view, at) == OnCommit::Ack, view.owned == Some(at));
    }

    #[test]
    fn a_copy_is_taken_only_when_ready_and_alive(view in target_view(), at in epoch()) {
        if target_on_commit(&view, at) == OnCommit::Take {
            prop_assert!(view.ready == Some(at) && view.copy != Copy::None && view.seen.is_none());
        }
        if target_on_answer(&view, at, Answer::Committed) == OnAnswer::Take {
            prop_assert_eq!(target_on_commit(&view, at), OnCommit::Take);
        }
    }

    #[test]
    fn lost_is_said_only_without_a_living_copy_of_that_epoch(view in target_view(), at in epoch()) {
        if target_on_commit(&view, at) == OnCommit::Lost {
            let mine = view.ready == Some(at) || view.seen == Some(at) || view.expected == Some(at);
            prop_assert!(!mine || view.copy == Copy::None);
            prop_assert!(view.owned != Some(at));
        }
    }

    #[test]
    fn a_restarted_target_keeps_what_is_ready_and_kills_what_is_not(view in target_view()) {
        let alive = view.copy != Copy::None;
        match target_on_restart(&view) {
            TargetRestart::Kill(at) => prop_assert!(view.ready.is_none() && view.expected == Some(at)),
            TargetRestart::Ask(at) => prop_assert!(alive && view.ready == Some(at) && view.seen.is_none()),
            TargetRestart::Finish(at) => prop_assert!(alive && view.seen == Some(at)),
            TargetRestart::Lost(_) => prop_assert!(!alive && view.ready.is_some()),
            TargetRestart::Nothing => prop_assert!(view.expected.is_none()),
        }
    }

    #[test]
    fn a_session_is_bound_to_epoch_and_incarnation(view in target_view(), at in epoch(), nonce in any::<bool>()) {
        if target_on_session(&view, at, nonce) {
            prop_assert!(nonce && view.expected == Some(at) && view.highest == at && view.ready.is_none());
        }
    }

    #[test]
    fn a_resolution_needs_a_new_epoch_and_is_never_contradicted(
        source in source_view(), target in target_view(), at in epoch(), who in owner(), before in owner()
    ) {
        if at <= source.highest {
            let answer = source_on_resolve(&source, at, who, Some(before));
            prop_assert!(matches!(answer, OnResolveSource::Stale(_) | OnResolveSource::Done));
            prop_assert!(answer != OnResolveSource::Done || (at == source.highest && before == who));
        }
        if at <= target.highest {
            let answer = target_on_resolve(&target, at, who, Some(before));
            prop_assert!(matches!(answer, OnResolveTarget::Stale(_) | OnResolveTarget::Done));
            prop_assert!(answer != OnResolveTarget::Done || (at == target.highest && before == who));
        }
    }

    #[test]
    fn a_resolution_never_lets_both_run(source in source_view(), target in target_view(), at in 5u64..9, who in owner()) {
        let s = source_on_resolve(&source, at, who, None);
        let t = target_on_resolve(&target, at, who, None);
        prop_assert!(!(s == OnResolveSource::GiveBack && t == OnResolveTarget::Take));
        prop_assert!(s != OnResolveSource::GiveBack || who == Owner::Source);
        prop_assert!(t != OnResolveTarget::Take || who == Owner::Target);
    }
}

#[test]
fn orders_that_are_repeated_continue_the_open_session() {
    let view = SourceView { highest: 3, open: Some(3), copy: Copy::Running, ..SourceView::default() };
    assert_eq!(source_on_start(&view, 3), OnStart::Continue);
    assert_eq!(source_on_start(&view, 4), OnStart::Busy);
    let view = TargetView { highest: 3, expected: Some(3), ..TargetView::default() };
    assert_eq!(target_on_prepare(&view, 3), OnPrepare::Continue);
    assert_eq!(target_on_prepare(&view, 2), OnPrepare::Stale(3));
    assert_eq!(target_on_prepare(&view, 4), OnPrepare::Expect);
}

#[test]
fn the_way_of_one_migration() {
    let source =
        |committed, copy| SourceView { highest: 1, open: Some(1), committed, copy, ..SourceView::default() };
    let running = SourceView { copy: Copy::Running, ..SourceView::default() };
    assert_eq!(source_on_start(&running, 1), OnStart::Begin);
    assert_eq!(source_on_query(&source(None, Copy::Frozen), 1), Answer::Undecided);
    let written = Some(Committed { epoch: 1, synced: false });
    assert_eq!(source_on_query(&source(written, Copy::Frozen), 1), Answer::Undecided);
    assert_eq!(source_on_ack(&source(written, Copy::Frozen), 1), OnAck::Ignore);
    let synced = Some(Committed { epoch: 1, synced: true });
    assert_eq!(source_on_query(&source(synced, Copy::Frozen), 1), Answer::Committed);
    assert_eq!(source_on_ack(&source(synced, Copy::Frozen), 1), OnAck::Kill);

    let ready = TargetView {
        highest: 1,
        expected: Some(1),
        ready: Some(1),
        copy: Copy::Frozen,
        ..TargetView::default()
    };
    assert_eq!(target_on_commit(&ready, 1), OnCommit::Take);
    let taking = TargetView { seen: Some(1), ..ready };
    assert_eq!(target_on_commit(&taking, 1), OnCommit::UnderWay);
    let owned = TargetView { highest: 1, owned: Some(1), copy: Copy::Running, ..TargetView::default() };
    assert_eq!(target_on_commit(&owned, 1), OnCommit::Ack);
    assert_eq!(target_on_prepare(&owned, 2), OnPrepare::Here);
}

#[test]
fn both_hosts_restarted_and_the_copy_lost() {
    let ready_died = TargetView { highest: 1, expected: Some(1), ready: Some(1), ..TargetView::default() };
    assert_eq!(target_on_restart(&ready_died), TargetRestart::Lost(1));
    let forgotten = TargetView { highest: 1, ..TargetView::default() };
    assert_eq!(target_on_commit(&forgotten, 1), OnCommit::Lost);
    let gone = SourceView { highest: 1, open: Some(1), ..SourceView::default() };
    assert_eq!(source_on_restart(&gone), SourceRestart::Forget(1));
}
