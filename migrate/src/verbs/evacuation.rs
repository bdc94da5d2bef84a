//! `drain`, `pause`, `resume`, and bringing back what was drained.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use proto::error::answers_later;
use proto::v1::{
    CancelEvacuationRequest, CreateEvacuationRequest, Evacuation, EvacuationEvent, EvacuationSpec, ItemState,
    PauseEvacuationRequest, ResumeEvacuationRequest, WatchEvacuationsRequest,
};
use tonic::Code;

use super::container::new_request_id;
use super::moving::RECONNECT_LIMIT;
use super::{print_object, refused};
use crate::api::Api;
use crate::dev::args::interrupted;
use crate::exit::{self, Exit, Failure};
use crate::progress::Live;
use crate::render::table;
use crate::render::{evacuation, units};
use crate::settings::{Output, Settings};

/// Arguments of `drain`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  migrate drain node-a --dry-run
  migrate drain node-a --deadline 10m --max-parallel 4
  migrate drain node-a --detach -o name
  migrate uncordon node-a --move-back

Exit codes: 0 all moved, 3 the plan says that some stay (--dry-run), 4 some stay, 5 the deadline passed,
6 cancelled. The node stays cordoned.")]
pub(crate) struct DrainOptions {
    /// The node to be emptied.
    node: String,
    /// Run the checks, show where each container would go, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Begin nothing more after this time; what runs then goes on to its end.
    #[arg(long, value_parser = humantime::parse_duration)]
    deadline: Option<Duration>,
    /// Migrations at once [default: 2].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    max_parallel: Option<u32>,
    /// A named policy for the migrations.
    #[arg(long, default_value = "")]
    policy: String,
    /// Bring everything back as soon as the node is uncordoned.
    #[arg(long)]
    move_back: bool,
    /// Return once the evacuation has been accepted.
    #[arg(long)]
    detach: bool,
    /// Makes a repeated call find the same evacuation; random when not given.
    #[arg(long)]
    request_id: Option<String>,
}

/// What `pause` and `resume` act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Only {
    /// An evacuation.
    Evacuation,
}

/// Arguments of `pause` and `resume`.
#[derive(Debug, clap::Args)]
pub(crate) struct PauseOptions {
    /// What it is.
    #[arg(value_enum)]
    kind: Only,
    /// Its name.
    name: String,
}

/// `migrate drain`.
pub(crate) async fn drain(options: DrainOptions, settings: &Settings) -> Result<Exit, Failure> {
    let tried = format!("drain {}", options.node);
    let spec = EvacuationSpec {
        node: options.node,
        deadline: options.deadline.map(units::to_proto),
        max_parallel: options.max_parallel.unwrap_or_default(),
        policy: options.policy,
        move_back: options.move_back,
        undo: false,
    };
    let request = CreateEvacuationRequest {
        request_id: options.request_id.unwrap_or_else(new_request_id),
        spec: Some(spec),
        validate_only: options.dry_run,
        ..CreateEvacuationRequest::default()
    };
    let mut api = Api::connect(settings).await?;
    let made = api.client.create_evacuation(request).await.map_err(refused(&tried))?.into_inner();
    if options.dry_run {
        return Ok(plan(&made, settings));
    }
    if options.detach {
        print_object(settings, &evacuation::object(&made), || format!("evacuation/{}\n", made.name));
        return Ok(Exit::Ok);
    }
    to_its_end(&mut api, &made.name, &tried, settings).await
}

/// `migrate uncordon --move-back`, once the node is uncordoned.
pub(super) async fn move_back(api: &mut Api, node: &str, settings: &Settings) -> Result<Exit, Failure> {
    let tried = format!("move back to {node}");
    let spec = EvacuationSpec { node: node.to_owned(), undo: true, ..EvacuationSpec::default() };
    let request = CreateEvacuationRequest {
        request_id: new_request_id(),
        spec: Some(spec),
        ..CreateEvacuationRequest::default()
    };
    let name = match api.client.create_evacuation(request).await {
        Ok(made) => made.into_inner().name,
        // Uncordoning has begun it: the drain was told to move back.
        Err(status) if status.code() == Code::Aborted => {
            let details = proto::error::ErrorDetails::of(&status);
            details.metadata.get("evacuation").cloned().ok_or_else(|| refused(&tried)(status))?
        }
        Err(status) => return Err(refused(&tried)(status)),
    };
    to_its_end(api, &name, &tried, settings).await
}

/// Shows a plan. The exit code says whether everything would move.
fn plan(planned: &Evacuation, settings: &Settings) -> Exit {
    print_object(settings, &evacuation::object(planned), || {
        if planned.items.is_empty() {
            return "nothing is there to be moved\n".to_owned();
        }
        evacuation::items(planned).render(table::colours(super::colour(settings)))
    });
    let stays = planned.items.iter().any(|item| item.state() == ItemState::Stays);
    if stays { Exit::Refused } else { Exit::Ok }
}

/// `migrate pause` and `migrate resume`.
pub(crate) async fn pause(options: PauseOptions, pause: bool, settings: &Settings) -> Result<Exit, Failure> {
    let Only::Evacuation = options.kind;
    let mut api = Api::connect(settings).await?;
    let name = options.name;
    let answer = if pause {
        api.client.pause_evacuation(PauseEvacuationRequest { name: name.clone() }).await
    } else {
        api.client.resume_evacuation(ResumeEvacuationRequest { name: name.clone() }).await
    };
    let tried = format!("{} {name}", if pause { "pause" } else { "resume" });
    print(settings, &answer.map_err(refused(tried))?.into_inner());
    Ok(Exit::Ok)
}

/// `migrate cancel evacuation/NAME`.
pub(super) async fn cancel(name: String, now: bool, settings: &Settings) -> Result<Exit, Failure> {
    let mut api = Api::connect(settings).await?;
    let tried = format!("cancel evacuation {name}");
    let request = CancelEvacuationRequest { name, now };
    let cancelled = api.client.cancel_evacuation(request).await.map_err(refused(tried))?.into_inner();
    print(settings, &cancelled);
    let spec = cancelled.spec.unwrap_or_default();
    if !settings.quiet && !spec.undo {
        eprintln!("{} stays cordoned: `migrate uncordon {}` lets it be used again", spec.node, spec.node);
    }
    Ok(Exit::Ok)
}

fn print(settings: &Settings, e: &Evacuation) {
    let wide = settings.output == Some(Output::Wide);
    print_object(settings, &evacuation::object(e), || {
        evacuation::table(std::slice::from_ref(e), wide).render(table::colours(super::colour(settings)))
    });
}

/// Follows an evacuation to its end, and says how it ended.
async fn to_its_end(api: &mut Api, name: &str, tried: &str, settings: &Settings) -> Result<Exit, Failure> {
    let mut view = View::new(settings);
    let ended = tokio::select! {
        ended = follow(api, name, settings, &mut view) => ended?,
        () = interrupted() => {
            view.live.clear();
            return Err(Failure::new(Exit::Other, format!("follow {name}"), "interrupted")
                .advise(format!("the evacuation goes on; `migrate cancel evacuation/{name}` ends it")));
        }
    };
    view.end(&ended, settings);
    match exit::of_evacuation(&ended) {
        Some(Exit::Ok) => Ok(Exit::Ok),
        other => Err(failed(&ended, tried, other.unwrap_or(Exit::Other))),
    }
}

/// What an evacuation that did not move everything tells.
fn failed(e: &Evacuation, tried: &str, exit: Exit) -> Failure {
    let stays: Vec<_> = e.items.iter().filter(|item| item.state() == ItemState::Stays).collect();
    let what = match exit {
        Exit::NotConverged => "the deadline passed",
        Exit::Cancelled => "it was cancelled",
        _ => "not everything moved",
    };
    let mut happened = format!("{what}: {} of {} containers stay", stays.len(), e.items.len());
    let spec = e.spec.clone().unwrap_or_default();
    if !spec.undo {
        happened.push_str(&format!(" ({} stays cordoned)", spec.node));
    }
    let mut failure = Failure::new(exit, tried, happened);
    failure.details = stays.iter().map(|item| format!("{}: {}", item.container, item.message)).collect();
    failure.advise(format!("`migrate describe evacuation {}` shows what happened", e.name))
}

/// Shows an evacuation until it ends. A coordinator that restarts is waited for.
async fn follow(
    api: &mut Api,
    name: &str,
    settings: &Settings,
    view: &mut View,
) -> Result<Evacuation, Failure> {
    let tried = format!("follow {name}");
    let mut heard = Instant::now();
    let mut seen = 0;
    loop {
        // From the start each time: the current object comes first, so that an end is never missed.
        let request = WatchEvacuationsRequest { name: name.to_owned(), revision: 0 };
        let broken = match api.client.watch_evacuations(request).await {
            Err(status) => status,
            Ok(events) => {
                let mut events = events.into_inner();
                loop {
                    match events.message().await {
                        Ok(Some(EvacuationEvent { evacuation: Some(e), revision })) => {
                            heard = Instant::now();
                            if revision > seen {
                                seen = revision;
                                view.show(&e);
                            }
                            if exit::of_evacuation(&e).is_some() {
                                return Ok(e);
                            }
                        }
                        Ok(Some(_)) => {}
                        Ok(None) => break tonic::Status::unavailable("the coordinator ended the connection"),
                        Err(status) => break status,
                    }
                }
            }
        };
        if !answers_later(&broken) || heard.elapsed() >= RECONNECT_LIMIT {
            return Err(refused(tried)(broken)
                .advise(format!("it goes on with the coordinator: `migrate describe evacuation {name}`")));
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        // The old connection may be of no use; an error here is found by the next watch.
        if let Ok(new) = Api::connect(settings).await {
            *api = new;
        }
    }
}

/// How an evacuation is shown while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// The table of its items, drawn again over itself (standard error is a terminal).
    Live,
    /// A line for each item that changes.
    Lines,
    /// The object, one line of JSON for each change.
    Json,
    Silent,
}

#[derive(Debug)]
struct View {
    mode: Mode,
    live: Live,
    told: std::collections::HashMap<String, String>,
}

impl View {
    fn new(settings: &Settings) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let mode = match settings.output.unwrap_or_default() {
            _ if settings.quiet => Mode::Silent,
            Output::Json => Mode::Json,
            Output::Table | Output::Wide if terminal => Mode::Live,
            Output::Table | Output::Wide => Mode::Lines,
            Output::Yaml | Output::Name => Mode::Silent,
        };
        Self { mode, live: Live::default(), told: std::collections::HashMap::new() }
    }

    fn show(&mut self, e: &Evacuation) {
        match self.mode {
            Mode::Silent => {}
            Mode::Json => println!("{}", evacuation::object(e)),
            Mode::Live => {
                // Without colours: a cut one would never end.
                let table = evacuation::items(e).render(None);
                let mut lines = vec![format!("{} {}", e.name, evacuation::phase(e.phase()))];
                lines.extend(table.lines().map(str::to_owned));
                self.live.draw(&lines, str::to_owned);
            }
            Mode::Lines => self.changed(e).iter().for_each(|line| println!("{line}")),
        }
    }

    /// A line for each item that is not as it was told last.
    fn changed(&mut self, e: &Evacuation) -> Vec<String> {
        let mut lines = Vec::new();
        for item in &e.items {
            let mut line = format!("{} {}", item.container, evacuation::state(item.state()));
            let why = match item.state() {
                ItemState::Migrating => {
                    format!("to {} as {} {}", item.target_node, item.migration, item.reason)
                }
                _ => item.message.clone(),
            };
            if !why.is_empty() {
                line.push_str(&format!("  {why}"));
            }
            if self.told.insert(item.container.clone(), line.clone()).as_ref() != Some(&line) {
                lines.push(line);
            }
        }
        lines
    }

    /// The last word: nothing is said twice.
    fn end(&mut self, e: &Evacuation, settings: &Settings) {
        self.live.clear();
        match self.mode {
            Mode::Json => {}
            Mode::Lines => println!("{} {}  {}", e.name, evacuation::phase(e.phase()), e.reason),
            Mode::Live | Mode::Silent => print_object(settings, &evacuation::object(e), || {
                let table = evacuation::items(e).render(table::colours(super::colour(settings)));
                format!("{table}{} {}\n", e.name, evacuation::phase(e.phase()))
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proto::v1::{EvacuationItem, EvacuationPhase};

    use super::*;

    fn item(container: &str, state: ItemState, message: &str) -> EvacuationItem {
        EvacuationItem {
            container: container.into(),
            state: state.into(),
            target_node: "node-b".into(),
            migration: format!("{container}-1"),
            message: message.into(),
            ..EvacuationItem::default()
        }
    }

    fn evacuation(items: Vec<EvacuationItem>) -> Evacuation {
        let spec = Some(EvacuationSpec { node: "node-a".into(), ..EvacuationSpec::default() });
        Evacuation { name: "drain-node-a-1".into(), spec, items, ..Evacuation::default() }
    }

    #[test]
    fn a_line_comes_when_an_item_changes_and_only_then() {
        let settings = Settings::default();
        let mut view = View { mode: Mode::Lines, ..View::new(&settings) };
        let mut e = evacuation(vec![item("web", ItemState::Waiting, ""), item("db", ItemState::Waiting, "")]);
        assert_eq!(view.changed(&e), ["web Waiting", "db Waiting"]);
        e.items[0].set_state(ItemState::Migrating);
        e.items[0].reason = "PreCopy".into();
        assert_eq!(view.changed(&e), ["web Migrating  to node-b as web-1 PreCopy"]);
        assert!(view.changed(&e).is_empty());
    }

    #[test]
    fn what_stays_is_named_with_its_reason() {
        let mut e = evacuation(vec![
            item("web", ItemState::Moved, "to node-b by web-1"),
            item("db", ItemState::Stays, "pid 3 fd 7: io_uring (close it)"),
        ]);
        e.set_phase(EvacuationPhase::Failed);
        let exit = exit::of_evacuation(&e).unwrap();
        let failure = failed(&e, "drain node-a", exit);
        assert_eq!(failure.exit, Exit::FailedAtSource);
        assert_eq!(failure.happened, "not everything moved: 1 of 2 containers stay (node-a stays cordoned)");
        assert_eq!(failure.details, ["db: pid 3 fd 7: io_uring (close it)"]);
        e.reason = "DeadlineExceeded".into();
        assert_eq!(exit::of_evacuation(&e), Some(Exit::NotConverged));
        e.set_phase(EvacuationPhase::Cancelled);
        assert_eq!(exit::of_evacuation(&e), Some(Exit::Cancelled));
        e.set_phase(EvacuationPhase::Running);
        assert_eq!(exit::of_evacuation(&e), None);
    }
}
