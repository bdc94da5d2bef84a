//! What the processes share as copy-on-write, sent ahead of the first round.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use image::Pid;
use image::pages::Owner;
use image::shape::{Shape, Vma};

use super::error::SourceError;
use super::look::{Look, ProcessLook};
use super::memory::template::{self, Inherited, Member, Template, Written};
use super::session::{Source, State, Tracked};
use super::{RoundStats, failpoint};
use crate::PageSink;

impl Source {
    /// What processes of the last [`Source::shape`] share as copy-on-write, as a shape of its own: the target follows it
    /// before the other one, and takes [`Source::template_pages`] between the two. `None` when they share nothing to speak
    /// of. Only before the first round.
    ///
    /// # Errors
    /// See [`SourceError`]; the tree is as before.
    pub fn template(&mut self) -> Result<Option<Shape>, SourceError> {
        if self.tracked.values().any(|tracked| !tracked.memory.is_new()) {
            return Err(self.wrong_state("a template"));
        }
        let look = self.take_look();
        let found = Self::find_template(&mut self.tracked, &look);
        self.put_look(look);
        self.template = found?;
        failpoint!("source-template");
        let vmas = self.template.as_ref().map(|template| template.vmas.clone());
        Ok(vmas.map(|template| Shape { template, ..Shape::default() }))
    }

    /// Sends the contents of the template. The next shape that the target follows must be the last one again, so that its
    /// processes begin with them.
    ///
    /// # Errors
    /// See [`SourceError`]; the tree is as before.
    pub fn template_pages(&mut self, sink: &mut dyn PageSink) -> Result<RoundStats, SourceError> {
        let Some(template) = self.template.take() else {
            return Err(self.wrong_state("sending a template"));
        };
        self.readers.begin(matches!(self.state, State::Frozen(_)));
        let look = self.take_look();
        let sent = self.send_template(&template, &look, sink);
        self.put_look(look);
        sent?;
        failpoint!("source-template-sent");
        Ok(self.readers.stats())
    }

    /// Pages that a template would spare.
    pub(super) fn spared(&mut self, look: &Look) -> Result<u64, SourceError> {
        Ok(Self::find_template(&mut self.tracked, look)?.map_or(0, |template| template.spared))
    }

    /// What pages are sent of: the frozen tree, or what was told last.
    pub(super) fn take_look(&mut self) -> Look {
        match &mut self.state {
            State::Frozen(frozen) => std::mem::take(&mut frozen.look),
            State::Tracking | State::Done => self.told.take().unwrap_or_default(),
        }
    }

    /// Ends what [`Source::take_look`] began.
    pub(super) fn put_look(&mut self, look: Look) {
        match &mut self.state {
            State::Frozen(frozen) => frozen.look = look,
            State::Tracking | State::Done => self.told = Some(look),
        }
    }

    fn members<'a>(tracked: &'a mut BTreeMap<i32, Tracked>, look: &'a Look) -> Vec<Member<'a>> {
        let mut known: HashMap<i32, &mut Tracked> =
            tracked.iter_mut().map(|(pid, tracked)| (*pid, tracked)).collect();
        let of = |found: &'a ProcessLook| {
            Some((&mut known.remove(&found.process.pid)?.memory, found.mappings.as_slice()))
        };
        look.processes.iter().filter_map(of).collect()
    }

    fn find_template(
        tracked: &mut BTreeMap<i32, Tracked>,
        look: &Look,
    ) -> Result<Option<Template>, SourceError> {
        let mut members = Self::members(tracked, look);
        if members.len() < 2 { Ok(None) } else { template::find(&mut members) }
    }

    fn send_template(
        &mut self,
        template: &Template,
        look: &Look,
        sink: &mut dyn PageSink,
    ) -> Result<(), SourceError> {
        let batcher = self.readers.own();
        let strict = batcher.strict;
        let mut members = Self::members(&mut self.tracked, look);
        let mut written = Written::default();
        for (memory, mappings) in &mut members {
            let Some(pages) = template.pages.get(&memory.pid) else { continue };
            match memory.template(mappings, pages, &mut written, batcher, sink) {
                // What was not read is not in the template.
                Err(SourceError::ReadPages { owner: Owner::Template, .. })
                    if !strict && !memory.is_alive(0) => {}
                other => other?,
            }
        }
        let written = Arc::new(written);
        let vmas: HashMap<Pid, &[Vma]> =
            look.shape.processes.iter().map(|process| (process.pid, process.mm.vmas.as_slice())).collect();
        let mut unknown: HashSet<Pid> = vmas.keys().copied().collect();
        for (memory, _) in members {
            if let Some(wanted) = vmas.get(&memory.inner) {
                memory.inherit(Inherited::new(&template.vmas, &written, wanted));
                unknown.remove(&memory.inner);
            }
        }
        // The shape has processes that were born while it was read. They begin with the template, too, and are tracked later.
        for pid in unknown {
            self.left_behind.entry(pid).or_default().add(&written.pages);
        }
        Ok(())
    }
}
