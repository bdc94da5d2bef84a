//! `check`: whether a container can move, and where.

use proto::v1::{CheckMoveRequest, CheckMoveResponse};
use tonic::Code;

use super::{print_object, refused};
use crate::api::Api;
use crate::exit::{Exit, Failure};
use crate::render::table::Table;
use crate::render::{describe, prediction, resource, units};
use crate::settings::Settings;

/// Arguments of `check`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  migrate check web
  migrate check web --to node-b --policy gentle
  migrate check web --to node-b -o json
  migrate check web --inventory --no-predict

To predict, the container's writes are counted for a second while it runs, and 64 MiB at most go over the link to each node that fits. A move to
the same node in the next 15 minutes shows the prediction beside what came of it.

Exit code 0: it can move. 3: something stands in the way; each thing is one line.")]
pub(crate) struct Options {
    /// The container.
    container: String,
    /// Only this node as a target.
    #[arg(long = "to", value_name = "NODE", default_value = "")]
    to: String,
    /// A named policy, for the prediction.
    #[arg(long, default_value = "")]
    policy: String,
    /// Do not measure: neither the container's writes nor the link, so nothing is predicted.
    #[arg(long)]
    no_predict: bool,
    /// List everything that the container has, item by item, with the verdict on each.
    #[arg(long)]
    inventory: bool,
}

/// The verdict in words.
fn text(container: &str, answer: &CheckMoveResponse) -> String {
    let found = answer.container.clone().unwrap_or_default();
    let mut out = format!(
        "{container}: {} resident, {} processes, {} threads, {} descriptors, {} connections\n",
        units::bytes(found.resident_bytes),
        found.processes,
        found.threads,
        found.descriptors,
        found.connections
    );
    if !found.items.is_empty() {
        out.push_str(&node_agent::inventory::table(&found.items).render(None));
    }
    if found.items_left_out > 0 {
        out.push_str(&format!("... and {} more, which move\n", found.items_left_out));
    }
    for refusal in &found.refusals {
        out.push_str(&format!("cannot move: {}\n", describe::refusal(refusal)));
    }
    if !answer.candidates.is_empty() {
        let mut table = Table::new(&["NODE", "FITS", "REASONS"]);
        for candidate in &answer.candidates {
            let fits = if candidate.fits { "yes" } else { "no" };
            table.row(vec![candidate.node.clone(), fits.into(), candidate.reasons.join("; ")]);
        }
        out.push_str(&table.render(None));
    }
    for candidate in answer.candidates.iter().filter(|candidate| !candidate.not_predicted.is_empty()) {
        out.push_str(&format!("{}: not predicted: {}\n", candidate.node, candidate.not_predicted));
    }
    out.push_str(&prediction::table(answer));
    out
}

fn exit_of(answer: &CheckMoveResponse) -> Exit {
    let movable = answer.container.as_ref().is_none_or(|found| found.refusals.is_empty());
    if movable && answer.candidates.iter().any(|candidate| candidate.fits) { Exit::Ok } else { Exit::Refused }
}

/// `migrate check`.
pub(crate) async fn run(options: Options, settings: &Settings) -> Result<Exit, Failure> {
    let mut api = Api::connect(settings).await?;
    let tried = format!("check {}", options.container);
    let mut request = CheckMoveRequest {
        container: options.container.clone(),
        target_node: options.to,
        predict: !options.no_predict,
        policy_name: options.policy,
        inventory: options.inventory,
        ..CheckMoveRequest::default()
    };
    let mut answered = api.client.check_container(request.clone()).await;
    // Who may only look is told what a look tells.
    if request.predict && answered.as_ref().is_err_and(|status| status.code() == Code::PermissionDenied) {
        eprintln!("not measured, so nothing is predicted: an administrator's certificate is needed for that");
        request.predict = false;
        answered = api.client.check_container(request).await;
    }
    let answer = answered.map_err(refused(tried))?.into_inner();
    print_object(settings, &resource::verdict(&options.container, &answer), || {
        text(&options.container, &answer)
    });
    Ok(exit_of(&answer))
}

#[cfg(test)]
mod tests {
    use proto::v1::{CandidateVerdict, CheckContainerResponse, InventoryItem, Refusal};

    use super::*;

    #[test]
    fn verdicts_and_exit_codes() {
        let fits = CandidateVerdict { node: "node-b".into(), fits: true, ..Default::default() };
        let full =
            CandidateVerdict { node: "node-c".into(), reasons: vec!["no room".into()], ..Default::default() };
        let mut answer = CheckMoveResponse {
            container: Some(CheckContainerResponse::default()),
            candidates: vec![full.clone(), fits],
        };
        assert_eq!(exit_of(&answer), Exit::Ok);
        assert!(text("web", &answer).contains("node-c  no    no room"));
        answer.container = Some(CheckContainerResponse {
            refusals: vec![Refusal {
                pid: 3,
                subject: "fd 4".into(),
                reason: "is io_uring".into(),
                ..Default::default()
            }],
            ..Default::default()
        });
        assert_eq!(exit_of(&answer), Exit::Refused);
        assert!(text("web", &answer).contains("cannot move: pid 3 fd 4: is io_uring"));
        let item = |subject: &str, what: &str, movable| InventoryItem {
            kind: "descriptor".into(),
            pid: 3,
            subject: subject.into(),
            what: what.into(),
            movable,
            reason: if movable { "" } else { "is io_uring" }.into(),
            ..Default::default()
        };
        answer.container = Some(CheckContainerResponse {
            items: vec![item("fd 4", "", false), item("fd 5", "pipe 77", true)],
            items_left_out: 2,
            ..Default::default()
        });
        let shown = text("web", &answer);
        let rows: Vec<&str> = shown.lines().skip(2).take(3).collect();
        assert!(rows[0].starts_with("descriptor  3    fd 5  pipe 77  moves"), "{shown}");
        assert!(rows[1].starts_with("descriptor  3    fd 4  -        refused  is io_uring"), "{shown}");
        assert_eq!(rows[2], "... and 2 more, which move");
        let nowhere = CheckMoveResponse { container: None, candidates: vec![full] };
        assert_eq!(exit_of(&nowhere), Exit::Refused);
    }
}
