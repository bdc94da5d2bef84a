//! `check`: whether a container can move, and where.

use proto::v1::{CheckMoveRequest, CheckMoveResponse};

use super::{print_object, refused};
use crate::api::Api;
use crate::exit::{Exit, Failure};
use crate::render::table::Table;
use crate::render::{describe, resource, units};
use crate::settings::Settings;

/// Arguments of `check`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit code 0: it can move. 3: something stands in the way; each thing is one line.")]
pub(crate) struct Options {
    /// The container.
    container: String,
    /// Only this node as a target.
    #[arg(long = "to", value_name = "NODE", default_value = "")]
    to: String,
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
    for refusal in &found.refusals {
        out.push_str(&format!("cannot move: {}\n", describe::refusal(refusal)));
    }
    if !answer.candidates.is_empty() {
        let mut table = Table::new(&["NODE", "FITS", "REASONS"]);
        for candidate in &answer.candidates {
            let fits = if candidate.fits { "yes" } else { "no" };
            table.row(vec![candidate.node.clone(), fits.into(), candidate.reasons.join("; ")]);
        }
        out.push_str(&table.render(false));
    }
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
    let request = CheckMoveRequest { container: options.container.clone(), target_node: options.to };
    let answer = api.client.check_container(request).await.map_err(refused(tried))?.into_inner();
    print_object(settings, &resource::verdict(&options.container, &answer), || {
        text(&options.container, &answer)
    });
    Ok(exit_of(&answer))
}

#[cfg(test)]
mod tests {
    use proto::v1::{CandidateVerdict, CheckContainerResponse, Refusal};

    use super::*;

    #[test]
    fn verdicts_and_exit_codes() {
        let fits = CandidateVerdict { node: "node-b".into(), fits: true, reasons: Vec::new() };
        let full = CandidateVerdict { node: "node-c".into(), fits: false, reasons: vec!["no room".into()] };
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
        let nowhere = CheckMoveResponse { container: None, candidates: vec![full] };
        assert_eq!(exit_of(&nowhere), Exit::Refused);
    }
}
