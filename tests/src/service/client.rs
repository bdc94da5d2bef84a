//! This program as a client on the client host: it speaks with the coordinator directly, not through `dev`'s forwarder.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use proto::identity::Role;
use proto::tls::{Expect, Tls, TlsFiles, connect};
use tonic::transport::Channel;

use super::{api, watch};

/// The first argument of a client.
pub const ROLE: &str = "__service";

/// A client's arguments.
#[derive(Debug, Parser)]
pub struct Client {
    /// Whom it asks.
    #[arg(long)]
    coordinator: String,
    /// Its credentials.
    #[arg(long)]
    tls_dir: PathBuf,
    #[command(subcommand)]
    load: Load,
}

#[derive(Debug, Subcommand)]
enum Load {
    /// Many requests.
    Api(api::Load),
    /// Many watchers.
    Watch(watch::Load),
}

/// The client that this process shall be, if it is one.
#[must_use]
pub fn asked() -> Option<Client> {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    (args.first().is_some_and(|first| first == ROLE)).then(|| Client::parse_from(args))
}

impl Client {
    /// Runs it and prints what it saw, one JSON line.
    ///
    /// # Errors
    /// When it cannot connect, or a call fails.
    pub fn run(&self) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let seen = match &self.load {
            Load::Api(load) => {
                let channels = runtime.block_on(self.channels(api::CONNECTIONS))?;
                serde_json::to_string(&load.run(&runtime, &channels)?)?
            }
            Load::Watch(load) => {
                let channels = runtime.block_on(self.channels(load.connections()))?;
                serde_json::to_string(&runtime.block_on(load.run(&channels))?)?
            }
        };
        println!("{seen}");
        // Streams are still open, and nobody needs them.
        runtime.shutdown_background();
        Ok(())
    }

    async fn channels(&self, count: usize) -> Result<Vec<Channel>> {
        let tls = Tls::load(&TlsFiles::in_dir(&self.tls_dir))?;
        let mut channels = Vec::new();
        for _ in 0..count {
            let channel = connect(&self.coordinator, &Expect::Any(Role::Coordinator), &tls).await;
            channels.push(channel.with_context(|| format!("connect to {}", self.coordinator))?);
        }
        Ok(channels)
    }
}
