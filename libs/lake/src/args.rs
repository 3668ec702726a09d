//! Where the lake is, as a setting.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::s3::S3Args;
use crate::{Error, Lake};

/// Long enough for an object of 32 MB over a slow line, and not for ever.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// The settings of a stage that reads or writes the lake.
#[derive(Debug, Clone, clap::Args)]
pub struct LakeArgs {
    /// Use this object store: a directory, file:///DIRECTORY, or s3://BUCKET[/PREFIX].
    #[arg(long, env = "CARSTREAM_LAKE", value_name = "URL", default_value = "lake")]
    pub lake: LakeUrl,
    /// How S3 is reached.
    #[command(flatten)]
    pub s3: S3Args,
}

impl LakeArgs {
    /// The lake at `lake`; how S3 is reached is up to the environment.
    pub fn new(lake: LakeUrl) -> Self {
        Self { lake, s3: S3Args::default() }
    }

    /// Opens the lake. A directory is created if it does not exist. A bucket is not contacted.
    pub fn open(&self) -> Result<Lake, Error> {
        self.open_with(REQUEST_TIMEOUT)
    }

    /// Like [`open`](Self::open). A request to a server that takes longer than `request_timeout` fails.
    pub fn open_with(&self, request_timeout: Duration) -> Result<Lake, Error> {
        Lake::open_at(&self.lake, &self.s3, request_timeout)
    }

    /// What of the settings cannot work.
    pub fn problems(&self) -> Vec<String> {
        match &self.lake {
            LakeUrl::Directory(path) if path.exists() && !path.is_dir() => {
                vec![format!("--lake {}: is a file: choose a directory", path.display())]
            }
            LakeUrl::Directory(_) => Vec::new(),
            LakeUrl::S3 { .. } => self.s3.problems(),
        }
    }
}

/// Where a lake is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LakeUrl {
    /// A directory of the local file system.
    Directory(PathBuf),
    /// A bucket, or a part of one, of S3 or a store that speaks its protocol.
    S3 {
        /// The bucket.
        bucket: String,
        /// What every object name starts with; empty for the whole bucket.
        prefix: String,
    },
}

impl FromStr for LakeUrl {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        if let Some(path) = s.strip_prefix("file://") {
            if !path.starts_with('/') || path.contains('%') {
                return Err(format!("{s:?} is not file:///DIRECTORY with an absolute, unescaped path"));
            }
            return Ok(Self::Directory(path.into()));
        }
        if let Some(rest) = s.strip_prefix("s3://") {
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            if bucket.is_empty() {
                return Err(format!("{s:?} names no bucket: s3://BUCKET or s3://BUCKET/PREFIX"));
            }
            return Ok(Self::S3 { bucket: bucket.to_owned(), prefix: prefix.trim_matches('/').to_owned() });
        }
        let refusal = || format!("{s:?} is neither a directory, file:///DIRECTORY nor s3://BUCKET/PREFIX");
        if s.is_empty() {
            return Err(refusal());
        }
        // A server, or another scheme: as a directory it would be created, and found empty.
        if s.split_once(':').is_some_and(|(before, _)| !before.contains('/')) {
            return Err(format!("{}: write ./{s} for a directory of that name", refusal()));
        }
        Ok(Self::Directory(s.into()))
    }
}

impl fmt::Display for LakeUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => write!(f, "{}", path.display()),
            Self::S3 { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_and_urls_are_told_apart() {
        let directory = |path: &str| Ok(LakeUrl::Directory(path.into()));
        assert_eq!("data/lake".parse(), directory("data/lake"));
        assert_eq!("/data/lake".parse(), directory("/data/lake"));
        assert_eq!("file:///data/lake".parse(), directory("/data/lake"));
        assert_eq!("./s3:bucket".parse(), directory("./s3:bucket"));
        for wrong in
            ["", "file://data", "gs://bucket", "s3://", "s3:///prefix", "s3:bucket", "localhost:9000", "file:/data"]
        {
            assert!(wrong.parse::<LakeUrl>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_bucket_may_have_a_prefix() {
        for url in ["s3://bucket", "s3://bucket/a/b"] {
            assert_eq!(url.parse().map(|url: LakeUrl| url.to_string()), Ok(url.to_owned()));
        }
    }
}
