//! The completions, in the shells that they are for.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::PathBuf;
use std::process::{Command, Stdio};

fn completion(shell: &str) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_migrate")).args(["completion", shell]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn installed(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|program| program.exists())
}

/// What bash suggests for the last word of each line, one line of words each.
fn suggested(lines: &[&str]) -> Vec<Vec<String>> {
    let mut script = completion("bash");
    // The shell itself says which function completes the command, and with which words it is called.
    script.push_str(
        r#"
suggest() {
    COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
    local spec=$(complete -p migrate)
    [[ $spec =~ -F\ ([^ ]+) ]]
    "${BASH_REMATCH[1]}" migrate "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
    echo "${COMPREPLY[*]}"
}
"#,
    );
    for line in lines {
        let words: Vec<_> = line.split(' ').map(|word| format!("'{word}'")).collect();
        script.push_str(&format!("suggest {}\n", words.join(" ")));
    }
    let mut bash = Command::new("bash");
    bash.args(["--noprofile", "--norc", "-c", &script]).stdin(Stdio::null());
    let output = bash.output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| line.split(' ').map(str::to_owned).collect()).collect()
}

#[test]
fn bash_suggests_verbs_kinds_options_and_their_values() {
    let wanted: &[(&str, &[&str])] = &[
        ("migrate ge", &["get"]),
        ("migrate d", &["demo", "dev", "describe", "delete", "drain"]),
        ("migrate get mig", &["migrations"]),
        ("migrate describe ev", &["evacuations"]),
        ("migrate move web --max", &["--max-downtime"]),
        ("migrate move web --compression ", &["auto", "off", "lz4", "zstd"]),
        ("migrate get nodes -o ", &["table", "wide", "json", "yaml", "name"]),
        ("migrate dev e", &["env", "exec"]),
        ("migrate pki i", &["init", "issue"]),
        ("migrate drain node-a --move", &["--move-back"]),
        ("migrate completion ba", &["bash"]),
        ("migrate nothing-begins-so", &[""]),
    ];
    let lines: Vec<_> = wanted.iter().map(|(line, _)| *line).collect();
    let suggested = suggested(&lines);
    assert_eq!(suggested.len(), wanted.len());
    for ((line, wanted), suggested) in wanted.iter().zip(&suggested) {
        assert_eq!(suggested, wanted, "{line}");
    }
    let verbs = &self::suggested(&["migrate "])[0];
    for verb in ["get", "run", "check", "move", "drain", "cancel", "wait", "resolve", "--coordinator"] {
        assert!(verbs.iter().any(|suggested| suggested == verb), "{verb} in {verbs:?}");
    }
    assert!(verbs.iter().all(|verb| !verb.starts_with("__")), "hidden programs are not suggested: {verbs:?}");
}

/// Their syntax, by the shells themselves where they are installed; that they name every verb anywhere.
#[test]
fn zsh_and_fish_can_read_theirs() {
    for shell in ["zsh", "fish"] {
        let text = completion(shell);
        for verb in ["evacuations", "drain", "max-downtime", "node-selector"] {
            assert!(text.contains(verb), "{shell}: {verb}");
        }
        let Some(program) = installed(shell) else {
            println!("{shell} is not installed: its syntax is not checked");
            continue;
        };
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, &text).unwrap();
        let output = Command::new(program).arg("-n").arg(file.path()).output().unwrap();
        assert!(output.status.success(), "{shell}: {output:?}");
    }
}
