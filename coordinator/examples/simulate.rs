//! Drains many nodes of a large simulated cluster with the coordinator's own decisions, and fails when a rule is broken.

use std::process::ExitCode;

use clap::Parser;
use coordinator::simulate::{Size, run};

/// A simulated cluster under the real decisions.
#[derive(Debug, Parser)]
struct Arguments {
    /// Nodes.
    #[arg(long, default_value_t = 1000)]
    nodes: usize,
    /// Containers.
    #[arg(long, default_value_t = 20_000)]
    containers: usize,
    /// Nodes that are drained at once.
    #[arg(long, default_value_t = 50)]
    drain: usize,
    /// Of the population.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> ExitCode {
    let Arguments { nodes, containers, drain, seed } = Arguments::parse();
    if nodes < 2 || drain >= nodes {
        eprintln!("at least two nodes, and one that is not drained");
        return ExitCode::from(2);
    }
    match run(Size { nodes, containers, drain, seed }) {
        Ok(report) => {
            let [half, most, longest] = report.latency;
            println!(
                "{} moves; in the queue: p50 {half:.1} s, p99 {most:.1} s, at most {longest:.1} s",
                report.moved
            );
            println!("{drain} nodes drained after {:.0} s", report.drained);
            let each = report.decisions as f64 / report.seconds;
            println!("{} decisions in {:.2} s: {each:.0} a second", report.decisions, report.seconds);
            let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
            let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("unknown");
            println!("peak RSS {}", peak.trim());
            ExitCode::SUCCESS
        }
        Err(broken) => {
            eprintln!("broken: {broken}");
            ExitCode::FAILURE
        }
    }
}
