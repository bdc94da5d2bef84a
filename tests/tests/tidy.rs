//! Holds the layer rules of ARCHITECTURE.md: who may import whom, where unsafe code, sled and the
//! configuration of tracing may stand, and what may not be left in the tree.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_path_buf()
}

/// Every Rust file that git tracks or would track, relative to the root.
fn rust_files() -> Vec<PathBuf> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "*.rs"])
        .current_dir(root())
        .output()
        .expect("git lists the tree");
    assert!(output.status.success(), "git ls-files failed");
    let files: Vec<PathBuf> = String::from_utf8(output.stdout)
        .expect("paths in UTF-8")
        .lines()
        .map(PathBuf::from)
        .filter(|path| root().join(path).exists())
        .collect();
    assert!(files.len() > 20, "the listing is too short to be true: {}", files.len());
    files
}

/// Code without comments and string contents, so that prose about a rule does not break it.
fn code_of(path: &Path) -> String {
    let text = fs::read_to_string(root().join(path)).expect("a readable file");
    let mut code = String::new();
    for line in text.lines() {
        let line = line.split("//").next().unwrap_or_default();
        let mut quoted = false;
        let mut escaped = false;
        for c in line.chars() {
            match c {
                '"' if !escaped => quoted = !quoted,
                _ if !quoted => code.push(c),
                _ => {}
            }
            escaped = c == '\\' && !escaped;
        }
        code.push('\n');
    }
    code
}

fn may_be_unsafe(path: &Path) -> bool {
    path.starts_with("node-agent/sys")
}

fn has_word(code: &str, word: &str) -> bool {
    code.split(|c: char| !(c.is_alphanumeric() || c == '_')).any(|token| token == word)
}

#[test]
fn unsafe_code_lives_in_sys_alone() {
    for path in rust_files().iter().filter(|path| !may_be_unsafe(path)) {
        assert!(!has_word(&code_of(path), "unsafe"), "{} holds unsafe code", path.display());
    }
}

#[test]
fn every_other_crate_forbids_unsafe_code() {
    for path in rust_files().iter().filter(|path| !may_be_unsafe(path)) {
        let is_crate_root = path.ends_with("src/lib.rs") || path.ends_with("src/main.rs");
        let has_lib = path.ends_with("src/main.rs") && root().join(path).with_file_name("lib.rs").exists();
        if is_crate_root && !has_lib && !path.starts_with("node-agent/image/fuzz") {
            assert!(
                code_of(path).contains("#![forbid(unsafe_code)]"),
                "{} lacks #![forbid(unsafe_code)]",
                path.display()
            );
        }
    }
}

#[test]
fn sled_is_named_in_the_store_alone() {
    for path in rust_files() {
        let store =
            path.starts_with("coordinator/src/store") || path == Path::new("coordinator/src/store.rs");
        if !store {
            assert!(!has_word(&code_of(&path), "sled"), "{} names sled", path.display());
        }
    }
}

#[test]
fn tracing_is_configured_in_telemetry_alone() {
    for path in rust_files() {
        if path.file_name().is_some_and(|name| name != "telemetry.rs") {
            assert!(
                !has_word(&code_of(&path), "tracing_subscriber"),
                "{} configures tracing",
                path.display()
            );
        }
    }
}

#[test]
fn nothing_is_left_undone_or_switched_off() {
    for path in rust_files() {
        let code = code_of(&path);
        for word in ["todo", "unimplemented"] {
            assert!(!code.contains(&format!("{word}!(")), "{} calls {word}!", path.display());
        }
        assert!(!code.contains("#[ignore"), "{} ignores a test", path.display());
    }
}

/// The dependencies among our own crates, and the crates that a layer must not know.
#[test]
fn layers_import_downwards_only() {
    let ours = [
        ("node-agent/sys", "sys"),
        ("node-agent/image", "image"),
        ("proto", "proto"),
        ("node-agent/engine", "engine"),
        ("node-agent", "node-agent"),
        ("coordinator", "coordinator"),
        ("migrate", "migrate"),
        ("tests", "tests"),
    ];
    let allowed: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("sys", &[][..]),
        ("image", &[]),
        ("proto", &[]),
        ("engine", &["sys", "image"]),
        ("node-agent", &["engine", "image", "proto", "sys"]),
        ("coordinator", &["proto"]),
        ("migrate", &["proto", "image", "sys", "node-agent", "coordinator"]),
        ("tests", &["proto"]),
    ]);
    for (dir, name) in ours {
        let manifest = fs::read_to_string(root().join(dir).join("Cargo.toml")).unwrap();
        let dependencies: Vec<String> = manifest
            .lines()
            .skip_while(|line| *line != "[dependencies]")
            .skip(1)
            .take_while(|line| !line.starts_with('['))
            .filter_map(|line| line.split(['.', '=', ' ']).next())
            .filter(|word| !word.is_empty())
            .map(str::to_owned)
            .collect();
        for (_, other) in ours {
            if dependencies.iter().any(|d| d == other) {
                assert!(allowed[name].contains(&other), "{name} must not depend on {other}");
            }
        }
        if ["sys", "image", "engine"].contains(&name) {
            for foreign in ["tokio", "tonic", "prost", "tracing-subscriber", "sled"] {
                assert!(!dependencies.iter().any(|d| d == foreign), "{name} must not depend on {foreign}");
            }
        }
        if name != "coordinator" {
            assert!(!dependencies.iter().any(|d| d == "sled"), "{name} must not depend on sled");
        }
    }
}
