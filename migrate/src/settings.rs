//! Where the coordinator is and how to print: flags, then environment (`MIGRATE_*`), then the configuration file.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::exit::Failure;

/// The configuration file when `--config` and `MIGRATE_CONFIG` name none.
const SYSTEM_FILE: &str = "/etc/gantry/migrate.toml";

/// Form of what is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Output {
    /// Columns.
    #[default]
    Table,
    /// More columns.
    Wide,
    /// One JSON object, or one a line while watching.
    Json,
    /// YAML.
    Yaml,
    /// `kind/name`.
    Name,
}

/// What the file may say; every flag of the same name overrides it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Settings {
    /// `[https://]HOST:PORT`.
    pub(crate) coordinator: Option<String>,
    /// Directory with `ca.crt`, `tls.crt` and `tls.key`.
    pub(crate) tls_dir: Option<PathBuf>,
    pub(crate) output: Option<Output>,
    pub(crate) quiet: bool,
    pub(crate) no_color: bool,
}

impl Settings {
    /// Reads the file: the one named, or the first of the usual ones that exists.
    pub(crate) fn load(named: Option<&Path>) -> Result<Self, Failure> {
        let usual = || {
            let home = std::env::var_os("XDG_CONFIG_HOME")
                .map(PathBuf::from)
                .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config")));
            let own = home.map(|dir| dir.join("gantry/migrate.toml"));
            own.into_iter().chain([SYSTEM_FILE.into()]).find(|path| path.is_file())
        };
        match named.map(Path::to_path_buf).or_else(usual) {
            None => Ok(Self::default()),
            Some(path) => {
                let tried = format!("read the configuration {}", path.display());
                let text = std::fs::read_to_string(&path).map_err(|e| Failure::usage(&tried, e))?;
                Self::parse(&text).map_err(|e| Failure::usage(&tried, e))
            }
        }
    }

    fn parse(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }

    /// The coordinator as HOST:PORT.
    pub(crate) fn address(&self) -> Result<String, Failure> {
        let tried = "reach the coordinator";
        let Some(given) = &self.coordinator else {
            return Err(Failure::usage(tried, "nothing says where it is").advise(
                "give --coordinator HOST:PORT or MIGRATE_COORDINATOR; with dev hosts: eval \"$(migrate dev env)\"",
            ));
        };
        let address = given.strip_prefix("https://").unwrap_or(given).trim_end_matches('/');
        if address.contains("://") {
            return Err(Failure::usage(tried, format_args!("{given} is not HOST:PORT or https://HOST:PORT"))
                .advise("every connection is TLS; there is no other scheme"));
        }
        if !address
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
        {
            return Err(Failure::usage(tried, format_args!("{given} does not name a port")));
        }
        Ok(address.to_owned())
    }

    /// The directory of credentials.
    pub(crate) fn credentials(&self) -> Result<&Path, Failure> {
        self.tls_dir.as_deref().ok_or_else(|| {
            Failure::usage("reach the coordinator", "nothing says which certificate to show").advise(
                "give --tls-dir DIR or MIGRATE_TLS_DIR: ca.crt, tls.crt and tls.key, made by `migrate pki issue`",
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(given: &str) -> Result<String, Failure> {
        Settings { coordinator: Some(given.into()), ..Settings::default() }.address()
    }

    #[test]
    fn addresses() {
        assert_eq!(address("10.77.0.2:7443").unwrap(), "10.77.0.2:7443");
        assert_eq!(address("https://gantry.example:7443/").unwrap(), "gantry.example:7443");
        assert_eq!(address("[fd00::1]:7443").unwrap(), "[fd00::1]:7443");
        for wrong in ["http://x:1", "x", ":7443", "x:port", "x:70000"] {
            assert!(address(wrong).is_err(), "{wrong}");
        }
        assert!(Settings::default().address().unwrap_err().advice.contains("MIGRATE_COORDINATOR"));
        assert!(Settings::default().credentials().is_err());
    }

    #[test]
    fn files() {
        let text = "coordinator = \"c:1\"\ntls_dir = \"/etc/gantry/me\"\noutput = \"wide\"\n";
        let settings = Settings::parse(text).unwrap();
        assert_eq!((settings.coordinator.as_deref(), settings.output), (Some("c:1"), Some(Output::Wide)));
        assert!(Settings::parse("colour = true").is_err());
        assert!(Settings::load(Some(Path::new("/nonexistent"))).is_err());
    }
}
