//! `logs` and `exec`: bytes as they come.

use std::io::{Read as _, Write as _};

use proto::v1::{ExecInput, LogsRequest};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::refused;
use crate::api::Api;
use crate::exit::{Exit, Failure};
use crate::settings::Settings;

/// Bytes of standard input sent at once.
const CHUNK: usize = 32 * 1024;

/// Arguments of `logs`.
#[derive(Debug, clap::Args)]
pub(crate) struct LogsOptions {
    /// The container.
    name: String,
    /// Go on as more is printed.
    #[arg(short, long)]
    follow: bool,
}

/// Arguments of `exec`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  migrate exec redis -- redis-cli ping

The exit code is the command's own.")]
pub(crate) struct ExecOptions {
    /// The container.
    name: String,
    /// The command.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// `migrate logs`.
pub(crate) async fn logs(options: LogsOptions, settings: &Settings) -> Result<Exit, Failure> {
    let mut api = Api::connect(settings).await?;
    let tried = format!("read the log of {}", options.name);
    let request = LogsRequest { name: options.name, follow: options.follow };
    let mut chunks = api.client.logs(request).await.map_err(refused(&tried))?.into_inner();
    let mut out = std::io::stdout();
    while let Some(chunk) = chunks.message().await.map_err(refused(&tried))? {
        if out.write_all(&chunk.data).and_then(|()| out.flush()).is_err() {
            // Whoever read has had enough.
            break;
        }
    }
    Ok(Exit::Ok)
}

/// Sends standard input until it closes or the command ends. Blocks: it has a thread of its own.
fn send_stdin(to: &mpsc::Sender<ExecInput>) {
    let mut stdin = std::io::stdin().lock();
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = stdin.read(&mut buffer).unwrap_or(0);
        let input = if read == 0 {
            ExecInput { stdin_closed: true, ..ExecInput::default() }
        } else {
            ExecInput { stdin: buffer[..read].to_vec(), ..ExecInput::default() }
        };
        if to.blocking_send(input).is_err() || read == 0 {
            return;
        }
    }
}

/// `migrate exec`.
pub(crate) async fn exec(options: ExecOptions, settings: &Settings) -> Result<Exit, Failure> {
    let mut api = Api::connect(settings).await?;
    let tried = format!("run a command in {}", options.name);
    let (sender, receiver) = mpsc::channel(8);
    let first = ExecInput { name: options.name, args: options.command, ..ExecInput::default() };
    // The channel is empty and its other end is here.
    let _ = sender.try_send(first);
    let answer = api.client.exec(ReceiverStream::new(receiver)).await;
    let mut outputs = answer.map_err(refused(&tried))?.into_inner();
    std::thread::spawn(move || send_stdin(&sender));
    let (mut out, mut err) = (std::io::stdout(), std::io::stderr());
    while let Some(output) = outputs.message().await.map_err(refused(&tried))? {
        // A closed pipe here does not end the command there; its exit code still counts.
        let _ = out.write_all(&output.stdout).and_then(|()| out.flush());
        let _ = err.write_all(&output.stderr);
        if let Some(status) = output.exit_status {
            std::process::exit(status);
        }
    }
    Err(Failure::new(Exit::Other, tried, "the connection ended before the command did"))
}
