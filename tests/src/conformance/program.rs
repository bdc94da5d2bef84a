//! A program of the suite, as its file describes it.

use std::fs;

use anyhow::{Context as _, Result, bail, ensure};

use super::{Outcome, Way, programs};

/// A program.
#[derive(Clone, Debug)]
pub struct Program {
    /// The row of the table: its directory.
    pub row: String,
    /// Its name in that row.
    pub name: String,
    /// What it is about.
    pub title: String,
    /// Programs that must be installed for it.
    pub needs: Vec<String>,
    /// Capabilities that its container gets.
    pub with: Vec<String>,
    /// Huge pages of 2 MiB that must be free for it, and for a copy of it.
    pub huge: u64,
    /// What the refusal must say, and in which ways it is expected.
    refused: Vec<(Vec<Way>, String)>,
    /// What is lost, and in which ways that is known.
    lost: Vec<(Vec<Way>, String)>,
    /// Ways in which it cannot be tried, and why.
    not: Vec<(Vec<Way>, String)>,
}

impl Program {
    fn parse(row: &str, name: &str, text: &str) -> Result<Self> {
        let title = text.lines().next().and_then(|line| line.strip_prefix("\"\"\"")?.strip_suffix("\"\"\""));
        let mut program = Self {
            row: row.to_owned(),
            name: name.to_owned(),
            title: title.context("the first line is not a docstring")?.to_owned(),
            needs: Vec::new(),
            with: Vec::new(),
            huge: 0,
            refused: Vec::new(),
            lost: Vec::new(),
            not: Vec::new(),
        };
        for line in text.lines().skip(1).map_while(|line| line.strip_prefix("# ")) {
            let (key, value) = line.split_once(": ").with_context(|| format!("{line:?} is no KEY: VALUE"))?;
            match key {
                "needs" => program.needs.extend(value.split_whitespace().map(str::to_owned)),
                "with" => program.with.extend(value.split_whitespace().map(str::to_owned)),
                "huge" => program.huge = value.parse().context("a number of huge pages")?,
                "refused" => program.refused.push((Way::ALL.to_vec(), value.to_owned())),
                "refused-here" => program.refused.push(ways(value)?),
                "lost" => program.lost.push((Way::ALL.to_vec(), value.to_owned())),
                "not" => program.not.push(ways(value)?),
                _ => bail!("{key:?} is not known"),
            }
        }
        Ok(program)
    }

    /// `ROW/NAME`.
    #[must_use]
    pub fn path(&self) -> String {
        format!("{}/{}", self.row, self.name)
    }

    /// Why it cannot be tried in this way.
    #[must_use]
    pub fn not(&self, way: Way) -> Option<&str> {
        find(&self.not, way)
    }

    /// What a refusal in this way must say; `None` when none is expected.
    #[must_use]
    pub fn refusal(&self, way: Way) -> Option<&str> {
        find(&self.refused, way)
    }

    /// Why this outcome is not what the program says.
    #[must_use]
    pub fn wrong(&self, way: Way, outcome: &Outcome) -> Option<String> {
        let known = find(&self.lost, way);
        match (outcome, self.refusal(way)) {
            (Outcome::Lost(what), _) if known.is_some_and(|text| what.contains(text)) => None,
            (Outcome::Kept, None) if known.is_some() => Some("kept, and a loss was expected".to_owned()),
            (Outcome::Kept, None) | (Outcome::Not(_), _) => None,
            (Outcome::Refused(reasons), Some(text)) if reasons.contains(text) => None,
            (Outcome::Kept, Some(text)) => Some(format!("kept, and a refusal was expected: {text}")),
            (Outcome::Refused(reasons), _) => Some(format!("refused: {reasons}")),
            (Outcome::Lost(what), _) => Some(format!("lost: {what}")),
        }
    }
}

/// What is said of this way.
fn find(said: &[(Vec<Way>, String)], way: Way) -> Option<&str> {
    said.iter().find(|(ways, _)| ways.contains(&way)).map(|(_, text)| text.as_str())
}

/// `host boxed: TEXT`.
fn ways(value: &str) -> Result<(Vec<Way>, String)> {
    let (names, text) = value.split_once(": ").context("WAYS: TEXT")?;
    let known = [Way::Null, Way::Host, Way::Boxed, Way::Move];
    let way = |name: &str| {
        known.into_iter().find(|way| way.name() == name).with_context(|| format!("{name:?} is no way"))
    };
    Ok((names.split_whitespace().map(way).collect::<Result<_>>()?, text.to_owned()))
}

/// All programs, row by row.
///
/// # Errors
/// When one is not described as it must be.
pub fn all() -> Result<Vec<Program>> {
    let mut all = Vec::new();
    for row in fs::read_dir(programs())? {
        let row = row?;
        if !row.file_type()?.is_dir() {
            continue;
        }
        for file in fs::read_dir(row.path())? {
            let path = file?.path();
            let name = path.file_stem().and_then(|stem| stem.to_str());
            if path.extension().is_none_or(|extension| extension != "py") {
                continue;
            }
            let text = fs::read_to_string(&path)?;
            let (row, name) = (row.file_name(), name.context("a name in UTF-8")?);
            let row = row.to_str().context("a name in UTF-8")?;
            all.push(Program::parse(row, name, &text).with_context(|| path.display().to_string())?);
        }
    }
    all.sort_by_key(Program::path);
    ensure!(!all.is_empty(), "no programs in {}", programs().display());
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_says_what_is_expected() {
        let text = "\"\"\"A lease\"\"\"\n# refused: lease\n# not: host: no reason\n# needs: nft ip\n# with: CAP_X\n# huge: 8\nimport os\n";
        let program = Program::parse("files", "lease", text).unwrap();
        assert_eq!((program.title.as_str(), program.needs.len()), ("A lease", 2));
        assert_eq!((program.with.as_slice(), program.huge), (&["CAP_X".to_owned()][..], 8));
        assert_eq!((program.not(Way::Host), program.not(Way::Move)), (Some("no reason"), None));
        let refused = |text: &str| Outcome::Refused(text.to_owned());
        assert_eq!(program.wrong(Way::Move, &refused("fd 3: a lease")), None);
        assert!(program.wrong(Way::Move, &refused("fd 3: a lock")).is_some());
        assert!(program.wrong(Way::Move, &Outcome::Kept).is_some());
        assert!(program.wrong(Way::Boxed, &Outcome::Lost("all".to_owned())).is_some());
        let known = Program::parse("files", "x", "\"\"\"X\"\"\"\n# lost: waited\n").unwrap();
        assert_eq!(known.wrong(Way::Move, &Outcome::Lost("waited 1 s".to_owned())), None);
        assert!(known.wrong(Way::Move, &Outcome::Lost("offset".to_owned())).is_some());
        assert!(known.wrong(Way::Move, &Outcome::Kept).is_some());
        assert_eq!(known.wrong(Way::Null, &Outcome::Kept), None);
        assert!(Program::parse("files", "x", "import os").is_err());
        assert!(Program::parse("files", "x", "\"\"\"X\"\"\"\n# refusd: y\n").is_err());
    }
}
