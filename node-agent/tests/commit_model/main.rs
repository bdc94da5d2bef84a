//! The commit protocol as a model.
mod checker;
mod source;
mod state;
mod steps;
mod target;

use checker::{Found, search};
use state::Bounds;

fn show(found: &Found) {
    println!("{} states in {:.1?}, {} need an operator", found.states, found.took, found.need_operator);
    if let Some(example) = &found.counter_example {
        println!("{}:", example.what);
        for step in &example.trace {
            println!("  {step:?}");
        }
    }
}

#[test]
fn first() {
    let bounds = Bounds { attempts: 1, agent_crashes: 1, losses: 1, ..Bounds::default() };
    let found = search(bounds, None);
    show(&found);
    assert!(found.counter_example.is_none());
}
