//! One module a group of commands: arguments, calls, what is printed.

pub(crate) mod check;
pub(crate) mod container;
pub(crate) mod evacuation;
pub(crate) mod get;
pub(crate) mod manifest;
pub(crate) mod migration;
pub(crate) mod moving;
pub(crate) mod stream;
pub(crate) mod wait;

use std::io::IsTerminal as _;

use serde_json::Value;

use crate::exit::Failure;
use crate::settings::{Output, Settings};

/// Parses `key=value`.
pub(crate) fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    if key.is_empty() { Err("the key is empty".into()) } else { Ok((key.into(), value.into())) }
}

/// Whether colours may be printed.
pub(crate) fn colour(settings: &Settings) -> bool {
    !settings.no_color && std::io::stdout().is_terminal()
}

/// Prints an object as JSON (one line), YAML or its name; `text` otherwise.
pub(crate) fn print_object(settings: &Settings, object: &Value, text: impl FnOnce() -> String) {
    match settings.output.unwrap_or_default() {
        Output::Json => println!("{object}"),
        Output::Yaml => print!("---\n{}", yaml(object)),
        Output::Name => println!("{}", name_of(object)),
        Output::Table | Output::Wide if settings.quiet => {}
        Output::Table | Output::Wide => print!("{}", text()),
    }
}

pub(crate) fn yaml(object: &Value) -> String {
    // Every JSON value has a YAML form.
    serde_saphyr::to_string(object).unwrap_or_default()
}

/// `kind/name` of an object.
pub(crate) fn name_of(object: &Value) -> String {
    let kind = object["kind"].as_str().unwrap_or_default().to_lowercase();
    format!("{kind}/{}", object["metadata"]["name"].as_str().unwrap_or_default())
}

/// For `map_err`: what the server answered while this was tried.
pub(crate) fn refused(tried: impl Into<String>) -> impl FnOnce(tonic::Status) -> Failure {
    let tried = tried.into();
    move |status| Failure::from_status(tried, &status)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn labels_and_names() {
        assert_eq!(label("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert!(label("a").is_err() && label("=b").is_err());
        assert_eq!(name_of(&json!({"kind": "Migration", "metadata": {"name": "web-1"}})), "migration/web-1");
    }
}
