//! Answers that go on: logs, commands, states of migrations.

use std::fs;
use std::pin::Pin;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proto::error::ApiError;
use proto::v1;
use std::os::unix::process::ExitStatusExt as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::convert;
use crate::runtime::Runtime;
use crate::runtime::logs::LogReader;
use crate::session::status;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Chunks of a log.
pub(super) type LogsStream = Answers<v1::LogsChunk>;
/// What a command writes, and its end.
pub(super) type ExecStream = Answers<v1::ExecOutput>;
/// States of a migration.
pub(super) type WatchStream = Answers<v1::MigrationStatus>;

/// How often a followed log is looked at.
const LOG_POLL: Duration = Duration::from_millis(100);

/// The log from its beginning; with `follow` until the container has ended.
pub(super) fn logs(runtime: Arc<Runtime>, mut reader: LogReader, follow: bool) -> LogsStream {
    let (sender, receiver) = mpsc::channel(4);
    tokio::task::spawn_blocking(move || {
        loop {
            // Asked before reading, so that what was written before the end is read.
            let ended = !follow || reader.is_final(&runtime);
            loop {
                let chunk = reader.next_chunk().map(|data| v1::LogsChunk { data }).map_err(|error| {
                    ApiError::new(Code::Internal, "RUNTIME_FAILED", format!("cannot read the log: {error}"))
                        .status()
                });
                match chunk {
                    Ok(chunk) if chunk.data.is_empty() => break,
                    chunk => {
                        let failed = chunk.is_err();
                        if sender.blocking_send(chunk).is_err() || failed {
                            return;
                        }
                    }
                }
            }
            if ended || sender.is_closed() {
                return;
            }
            std::thread::sleep(LOG_POLL);
        }
    });
    Box::pin(ReceiverStream::new(receiver))
}

/// How often a state is looked at whose changes are not told: around the pause nobody is woken for them.
const LOOK: std::time::Duration = std::time::Duration::from_millis(200);

/// The current state and every later one, until the last.
pub(super) fn watch(mut status: watch::Receiver<status::Status>) -> WatchStream {
    let (sender, receiver) = mpsc::channel(4);
    tokio::spawn(async move {
        let mut told = None;
        loop {
            let now = status.borrow_and_update().clone();
            let last = now.phase.is_terminal();
            if told.as_ref() != Some(&now) && sender.send(Ok(convert::migration(&now))).await.is_err() || last
            {
                return;
            }
            told = Some(now);
            tokio::select! {
                changed = status.changed() => if changed.is_err() { return },
                () = sender.closed() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    });
    Box::pin(ReceiverStream::new(receiver))
}

/// Runs a command and relays its streams. When the client goes away the command is killed.
pub(super) fn exec(
    command: std::process::Command,
    input: Streaming<v1::ExecInput>,
) -> Result<ExecStream, Status> {
    let mut command = Command::from(command);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().map_err(|error| {
        ApiError::new(Code::Internal, "RUNTIME_FAILED", format!("cannot start the command: {error}")).status()
    })?;
    let (sender, receiver) = mpsc::channel(8);
    tokio::spawn(relay(Helper(child), input, sender));
    Ok(Box::pin(ReceiverStream::new(receiver)))
}

type Out = mpsc::Sender<Result<v1::ExecOutput, Status>>;

async fn relay(mut helper: Helper, mut input: Streaming<v1::ExecInput>, sender: Out) {
    let stdin = helper.0.stdin.take();
    let feed = tokio::spawn(async move {
        let Some(mut stdin) = stdin else { return };
        while let Ok(Some(message)) = input.message().await {
            if stdin.write_all(&message.stdin).await.is_err() || message.stdin_closed {
                break;
            }
        }
    });
    let stdout =
        pump(helper.0.stdout.take(), &sender, |stdout| v1::ExecOutput { stdout, ..Default::default() });
    let stderr =
        pump(helper.0.stderr.take(), &sender, |stderr| v1::ExecOutput { stderr, ..Default::default() });
    let done = async {
        tokio::join!(stdout, stderr);
        helper.0.wait().await
    };
    let ended = tokio::select! {
        ended = done => ended,
        () = sender.closed() => return,
    };
    feed.abort();
    let last = ended
        .map(|status| {
            let status = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
            v1::ExecOutput { exit_status: Some(status.unwrap_or(255)), ..Default::default() }
        })
        .map_err(|error| {
            ApiError::new(Code::Internal, "RUNTIME_FAILED", format!("cannot wait: {error}")).status()
        });
    let _ = sender.send(last).await;
}

async fn pump(
    stream: Option<impl AsyncRead + Unpin>,
    sender: &Out,
    wrap: impl Fn(Vec<u8>) -> v1::ExecOutput,
) {
    let Some(mut stream) = stream else { return };
    let mut buffer = vec![0; 32 * 1024];
    while let Ok(length @ 1..) = stream.read(&mut buffer).await {
        if sender.send(Ok(wrap(buffer[..length].to_vec()))).await.is_err() {
            return;
        }
    }
}

/// The helper of a command. Dropping it kills the command, which is its child, and then itself.
#[derive(Debug)]
struct Helper(Child);

impl Drop for Helper {
    fn drop(&mut self) {
        // Nothing is left once it was waited for.
        let Some(pid) = self.0.id() else { return };
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        for child in children.split_whitespace().filter_map(|child| child.parse().ok()) {
            let _ = kill(Pid::from_raw(child), Signal::SIGKILL);
        }
        let _ = self.0.start_kill();
    }
}
