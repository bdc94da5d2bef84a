//! Domain types as messages, and messages as domain types.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use proto::error::{ApiError, invalid_field, not_found};
use proto::v1;
use tonic::{Code, Status};

use crate::commit;
use crate::runtime::{ContainerName, ContainerStatus, RunRequest, RuntimeError, State};
use crate::session::orders::{self, OrderError};
use crate::session::policy::MAX_THROTTLE;
use crate::session::ports::PortError;
use crate::session::predict;
use crate::session::status;
use crate::telemetry::chain;
use crate::transfer::squeeze::Compression;

/// A container as the API shows it.
pub(crate) fn container(status: ContainerStatus, node: &str) -> v1::Container {
    let state = match status.state {
        State::Running => v1::ContainerState::Running,
        State::Stopped => v1::ContainerState::Stopped,
        State::Migrating => v1::ContainerState::Migrating,
        State::Incoming => v1::ContainerState::Incoming,
        State::Frozen => v1::ContainerState::Frozen,
    };
    v1::Container {
        name: status.name.to_string(),
        node: node.to_owned(),
        state: state.into(),
        pid: status.pid.unwrap_or(0),
        ip: status.ip.unwrap_or_default(),
        mac: status.mac,
        labels: status.labels.into_iter().collect(),
        memory_bytes: status.memory_bytes,
        epoch: status.epoch,
        exit_status: status.exit_status,
        created: Some(timestamp(status.created)),
        bundle: status.bundle.display().to_string(),
    }
}

fn timestamp(time: SystemTime) -> prost_types::Timestamp {
    prost_types::Timestamp::from(time)
}

/// What a migration would cost.
#[expect(clippy::cast_precision_loss, reason = "rates need no more than 52 bits")]
pub(super) fn forecast(forecast: predict::Forecast) -> v1::Forecast {
    let (prediction, error) = match forecast.prediction {
        Ok(found) => (Some(found), String::new()),
        Err(error) => (None, error),
    };
    let prediction = prediction.map(|found| v1::Prediction {
        rounds: found.rounds,
        bytes: found.bytes,
        total_seconds: found.total.as_secs_f64(),
        pause_ms: found.pause.as_secs_f64() * 1e3,
        converges: found.converges,
        reason: found.reason,
        throttle_percent: found.throttle,
        dirty_bytes_per_second: found.dirty_rate as f64,
        working_set_bytes: found.working_set,
        memory_bytes: found.memory,
        transfer_bytes_per_second: found.transfer_rate as f64,
        time: Some(timestamp(SystemTime::now())),
    });
    v1::Forecast { node: forecast.node, prediction, error }
}

/// A container's name out of a request.
pub(super) fn name(text: &str) -> Result<ContainerName, Status> {
    ContainerName::new(text).map_err(|error| invalid_field("name", error.to_string()).status())
}

/// What is to be started.
pub(super) fn run_request(request: v1::RunContainerRequest) -> Result<RunRequest, Status> {
    let wrong = |field: &str, why: String| invalid_field(field, why).status();
    let optional = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let ip = optional(&request.ip).map(|text| text.parse()).transpose();
    let mac = optional(&request.mac).map(|text| text.parse()).transpose();
    let bundle = std::path::PathBuf::from(&request.bundle);
    if !bundle.is_absolute() {
        return Err(wrong("bundle", format!("{:?} must be an absolute path on the node", request.bundle)));
    }
    Ok(RunRequest {
        name: name(&request.name)?,
        bundle,
        ip: ip.map_err(|error: crate::network::ParseError| wrong("ip", error.to_string()))?,
        mac: mac.map_err(|error: crate::network::ParseError| wrong("mac", error.to_string()))?,
        labels: request.labels.into_iter().collect::<BTreeMap<_, _>>(),
    })
}

/// What a failed operation on a container answers.
pub(super) fn runtime_error(error: &RuntimeError) -> Status {
    let text = chain(error);
    match error {
        RuntimeError::Name(_) => invalid_field("name", text),
        RuntimeError::NotFound(name) => not_found("container", name.as_str()),
        RuntimeError::Exists(name) => {
            ApiError::new(Code::AlreadyExists, "CONTAINER_EXISTS", text).with("container", name.as_str())
        }
        RuntimeError::NotRunning(name) => {
            ApiError::new(Code::FailedPrecondition, "CONTAINER_NOT_RUNNING", text)
                .with("container", name.as_str())
        }
        RuntimeError::Running(name) => ApiError::new(Code::FailedPrecondition, "CONTAINER_RUNNING", text)
            .with("container", name.as_str()),
        RuntimeError::Held(name) => ApiError::new(Code::FailedPrecondition, "CONTAINER_MIGRATING", text)
            .with("container", name.as_str()),
        RuntimeError::Bundle { .. } | RuntimeError::Config { .. } => invalid_field("bundle", text),
        RuntimeError::Sandbox { name, .. } => {
            ApiError::new(Code::FailedPrecondition, "CONTAINER_START_FAILED", text)
                .with("container", name.as_str())
        }
        RuntimeError::Cgroup(crate::runtime::cgroup::CgroupError::Limit { limit, .. }) => {
            ApiError::new(Code::FailedPrecondition, "LIMIT_NOT_AVAILABLE", text).with("limit", *limit)
        }
        RuntimeError::File { .. }
        | RuntimeError::Damaged { .. }
        | RuntimeError::Shim { .. }
        | RuntimeError::Cgroup(_)
        | RuntimeError::Network(_)
        | RuntimeError::NetState(_)
        | RuntimeError::TimedOut { .. }
        | RuntimeError::Process { .. } => ApiError::new(Code::Internal, "RUNTIME_FAILED", text),
    }
    .status()
}

/// What a refused order answers.
pub(super) fn order_error(error: &OrderError) -> Status {
    let text = chain(error);
    match error {
        OrderError::Stale { epoch, known, owner } => {
            let owner = match owner {
                Some(commit::Owner::Source) => "source",
                Some(commit::Owner::Target) => "target",
                None => "unknown",
            };
            ApiError::new(Code::FailedPrecondition, "STALE_EPOCH", text)
                .with("epoch", epoch.to_string())
                .with("known", known.to_string())
                .with("owner", owner)
        }
        OrderError::Busy { migration } => {
            ApiError::new(Code::Aborted, "MIGRATION_RUNNING", text).with("migration", migration.as_str())
        }
        OrderError::Unacknowledged { migration } => {
            ApiError::new(Code::FailedPrecondition, "MIGRATION_UNACKNOWLEDGED", text)
                .with("migration", migration.as_str())
        }
        OrderError::Container(_) => ApiError::new(Code::FailedPrecondition, "CONTAINER_UNFIT", text),
        OrderError::NoMigration(name) => not_found("migration", name),
        OrderError::Committed(name) => ApiError::new(Code::FailedPrecondition, "MIGRATION_COMMITTED", text)
            .with("migration", name.as_str()),
        OrderError::NotSource { source_node, .. } => {
            ApiError::new(Code::FailedPrecondition, "NOT_THE_SOURCE", text)
                .with("source_node", source_node.as_str())
        }
        OrderError::Contrary(_) => ApiError::new(Code::FailedPrecondition, "CONTRARY_RESOLUTION", text),
        OrderError::NotMeasured(_) => ApiError::new(Code::FailedPrecondition, "NOT_MEASURED", text),
        OrderError::Port(PortError::NoContainer(name)) => not_found("container", name),
        OrderError::Port(_) | OrderError::Journal(_) | OrderError::Thread(_) => {
            ApiError::new(Code::Internal, "AGENT_FAILED", text)
        }
    }
    .status()
}

/// A refusal as the API shows it.
pub(crate) fn refusal(refusal: &image::Refusal) -> v1::Refusal {
    let text = refusal.to_string();
    let subject = text.split(": ").next().unwrap_or_default();
    let own = format!("pid {} ", refusal.pid);
    v1::Refusal {
        pid: refusal.pid,
        subject: subject.strip_prefix(own.as_str()).unwrap_or(subject).to_owned(),
        reason: refusal.reason.clone(),
        way_out: refusal.way_out.clone(),
    }
}

/// Limits of a migration; zero means the default.
pub(super) fn limits(policy: Option<v1::Policy>) -> orders::Limits {
    let default = orders::Limits::default();
    let Some(policy) = policy else { return default };
    let duration = |value: Option<prost_types::Duration>, otherwise: Duration| {
        value
            .and_then(|value| Duration::try_from(value).ok())
            .filter(|value| !value.is_zero())
            .unwrap_or(otherwise)
    };
    orders::Limits {
        max_downtime: duration(policy.max_downtime, default.max_downtime),
        timeout: duration(policy.timeout, default.timeout),
        bandwidth: policy.bandwidth_bytes_per_second,
        max_rounds: if policy.max_rounds == 0 { default.max_rounds } else { policy.max_rounds },
        on_timeout: match v1::OnTimeout::try_from(policy.on_timeout) {
            Ok(v1::OnTimeout::Force) => orders::OnTimeout::Force,
            _ => orders::OnTimeout::Abort,
        },
        compression: match v1::Compression::try_from(policy.compression) {
            Ok(v1::Compression::Off) => Compression::Off,
            Ok(v1::Compression::Lz4) => Compression::Lz4,
            Ok(v1::Compression::Zstd) => Compression::Zstd,
            _ => Compression::Auto,
        },
        throttle: policy.throttle_max_percent.min(MAX_THROTTLE),
    }
}

/// One side's state of a migration.
pub(crate) fn migration(status: &status::Status) -> v1::MigrationStatus {
    v1::MigrationStatus {
        migration: status.migration.clone(),
        epoch: status.epoch,
        container: status.container.clone(),
        phase: phase(status.phase).into(),
        rounds: status.rounds.iter().map(round).collect(),
        downtime: status.downtime.as_ref().map(|downtime| v1::Downtime {
            total_ms: millis(downtime.total),
            freeze_ms: millis(downtime.freeze),
            last_pages_ms: millis(downtime.last_pages),
            capture_ms: millis(downtime.capture),
            restore_ms: millis(downtime.restore),
            commit_ms: millis(downtime.commit),
            network_ms: millis(downtime.network),
            wire_ms: millis(downtime.wire),
            first_packet_ms: downtime.first_packet.map(millis),
            steps: downtime
                .steps
                .iter()
                .map(|(name, took)| v1::DowntimeStep { name: name.clone(), ms: millis(*took) })
                .collect(),
        }),
        bytes_sent: status.bytes,
        total_seconds: status.total.as_secs_f64(),
        reason: status.reason.clone(),
        message: status.message.clone(),
        refusals: status.refusals.iter().map(refusal).collect(),
        remaining_bytes: status.remaining,
        events: status.events.clone(),
    }
}

fn phase(phase: status::Phase) -> v1::Phase {
    match phase {
        status::Phase::Pending => v1::Phase::Pending,
        status::Phase::Checking => v1::Phase::Checking,
        status::Phase::Preparing => v1::Phase::Preparing,
        status::Phase::PreCopy => v1::Phase::PreCopy,
        status::Phase::Switchover => v1::Phase::Switchover,
        status::Phase::Completing => v1::Phase::Completing,
        status::Phase::Succeeded => v1::Phase::Succeeded,
        status::Phase::Failed => v1::Phase::Failed,
        status::Phase::Cancelled => v1::Phase::Cancelled,
        status::Phase::OutcomeUnknown => v1::Phase::OutcomeUnknown,
    }
}

fn round(round: &status::Round) -> v1::Round {
    v1::Round {
        index: round.index,
        pages: round.pages,
        zero_pages: round.zero_pages,
        bytes: round.bytes,
        seconds: round.took.as_secs_f64(),
        dirty_bytes_per_second: round.dirty_rate,
        transfer_bytes_per_second: round.transfer_rate,
        predicted_pause_ms: millis(round.predicted_pause),
        decision: round.decision.to_owned(),
        reason: round.reason.clone(),
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
