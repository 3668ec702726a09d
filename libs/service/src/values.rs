//! The types of values that settings take, the same in every stage:
//!
//! | value | written as | refused |
//! | --- | --- | --- |
//! | a duration | a number and a unit, `500ms`, `90s`, `1.5m`, `24h`, `7d` | a number without a unit, also 0 |
//! | a size | a number and a unit, `512B`, `256KiB`, `64MiB`, `1GiB` | a number without a unit |
//! | a time | `2026-11-21T08:15:00Z`, `2026-11-21` (midnight, UTC), or an age, `6h` | anything else |
//! | an address | [`HostPort`]: `HOST:PORT`, an IP address or a name | an address without a port |
//! | a switch | `1`, `true`, `yes`, `on`; `0`, `false`, `no`, `off` | anything else |
//!
//! A bare number has no meaning here: one stage's seconds were another one's milliseconds.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use chrono::{DateTime, NaiveDate, NaiveTime, Utc};

const DURATION_UNITS: [(&str, f64); 5] = [("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3_600.0), ("d", 86_400.0)];

/// Added to a clock's time it must not overflow.
const MAX_DURATION: Duration = Duration::from_secs(100 * 365 * 86_400);

const SIZE_UNITS: [(&str, u64); 4] = [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];

/// A duration: clap's `value_parser`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit_s) = with_unit(text, &DURATION_UNITS).ok_or_else(|| {
        format!("{text:?} is not a duration: write a number and its unit (ms, s, m, h or d), such as 500ms or 90s")
    })?;
    match Duration::try_from_secs_f64(number * unit_s) {
        Ok(duration) if duration <= MAX_DURATION => Ok(duration),
        _ => Err(format!("{text:?} is longer than a hundred years")),
    }
}

/// A duration as [`duration`] reads it: in the largest unit of which it is a whole number.
pub fn shown_duration(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    let whole = DURATION_UNITS.iter().rev().find(|(_, unit_s)| seconds % unit_s == 0.0 && seconds >= *unit_s);
    let (unit, unit_s) = whole.unwrap_or(&DURATION_UNITS[0]);
    format!("{}{unit}", (seconds / unit_s * 1e6).round() / 1e6)
}

/// A duration above 0: clap's `value_parser`.
pub fn positive_duration(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("must be above 0".to_owned()),
        duration => Ok(duration),
    }
}

/// A size in bytes: clap's `value_parser`.
pub fn size<T: TryFrom<u64>>(text: &str) -> Result<T, String> {
    let (number, unit_bytes) = with_unit(text, &SIZE_UNITS).ok_or_else(|| {
        format!("{text:?} is not a size: write a number and its unit (B, KiB, MiB or GiB), such as 256KiB or 64MiB")
    })?;
    let bytes = number * unit_bytes as f64;
    // Above 2^53 not every number of bytes is an f64.
    if bytes.fract() != 0.0 || bytes > (1u64 << 53) as f64 {
        return Err(format!("{text:?} is not a whole number of bytes below 8192 TiB"));
    }
    T::try_from(bytes as u64).map_err(|_| format!("{text:?} is too large for this setting"))
}

/// A point in time, in milliseconds since the epoch: clap's `value_parser`.
pub fn time_ms(text: &str) -> Result<i64, String> {
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Ok(time.timestamp_millis());
    }
    if let Ok(date) = text.parse::<NaiveDate>() {
        return Ok(date.and_time(NaiveTime::MIN).and_utc().timestamp_millis());
    }
    let ago = || {
        let age = duration(text).ok()?;
        Utc::now().timestamp_millis().checked_sub(age.as_millis().try_into().ok()?)
    };
    ago().ok_or_else(|| {
        format!("{text:?} is not a time: use 2026-11-21T08:15:00Z, 2026-11-21, or an age such as 90s, 30m, 6h, 2d")
    })
}

/// A number that is not negative, and what its unit stands for.
fn with_unit<T: Copy>(text: &str, units: &[(&str, T)]) -> Option<(f64, T)> {
    let (number, unit) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic())?);
    // What f64 takes besides: signs, exponents, infinity.
    if !number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return None;
    }
    let &(_, value) = units.iter().find(|(name, _)| *name == unit)?;
    Some((number.parse().ok()?, value))
}

/// A switch in an environment variable: clap's `value_parser`.
pub fn switch(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" => Ok(false),
        _ => Err("write 1, true, yes or on; or 0, false, no or off".to_owned()),
    }
}

/// `HOST:PORT`. A name is resolved when it is used: to bind or to connect.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// An IP address, IPv6 without brackets, or a name.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl HostPort {
    /// What tokio and std take to bind or to connect: a host and a port.
    pub fn as_pair(&self) -> (&str, u16) {
        (&self.host, self.port)
    }
}

impl FromStr for HostPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse_host_port(text)
            .ok_or_else(|| format!("{text:?} is not HOST:PORT, such as localhost:1883, 0.0.0.0:1883 or [::]:1883"))
    }
}

fn parse_host_port(text: &str) -> Option<HostPort> {
    let (host, port) = text.rsplit_once(':')?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_name = |host: &str| {
        !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
    };
    let host = match bare {
        Some(ipv6) => ipv6.parse::<std::net::Ipv6Addr>().ok().map(|_| ipv6)?,
        None => Some(host).filter(|host| is_name(host))?,
    };
    // u16 also takes a sign.
    let port = Some(port).filter(|port| port.bytes().all(|byte| byte.is_ascii_digit()))?.parse().ok()?;
    Some(HostPort { host: host.to_owned(), port })
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

impl From<SocketAddr> for HostPort {
    fn from(address: SocketAddr) -> Self {
        Self { host: address.ip().to_string(), port: address.port() }
    }
}

impl<I: Into<IpAddr>> From<(I, u16)> for HostPort {
    fn from((ip, port): (I, u16)) -> Self {
        Self { host: ip.into().to_string(), port }
    }
}

/// What is wrong with a directory that must exist, if it does not. Opening it would make it, and find it empty.
pub fn missing_directory(setting: &str, path: &Path) -> Option<String> {
    (!path.exists()).then(|| format!("{setting} {}: the directory does not exist", path.display()))
}

/// What is wrong with a directory that is to be used or made, if it is a file.
pub fn not_a_directory(setting: &str, path: &Path) -> Option<String> {
    let is_other = path.exists() && !path.is_dir();
    is_other.then(|| format!("{setting} {}: is a file: choose a directory", path.display()))
}

/// The name of an instance: clap's `value_parser`. `@host` stands for the name of the host, which in a container or a
/// pod is the container's or the pod's own.
pub fn instance_name(text: &str) -> Result<String, String> {
    match text {
        "@host" => std::fs::read_to_string(HOST_NAME)
            .map_err(|e| format!("@host: cannot read the host's name from {HOST_NAME}: {e}; give a name instead"))
            .and_then(|host| name(&host)),
        text => name(text),
    }
}

/// Where Linux keeps the name of the host.
const HOST_NAME: &str = "/proc/sys/kernel/hostname";

/// A name: clap's `value_parser`.
pub fn name(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("must not be empty".to_owned()),
        name => Ok(name.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_duration_is_a_number_and_a_unit() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("1.5m"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        for shown in ["30d", "25h", "1h", "90s", "1500ms", "0ms"] {
            assert_eq!(duration(shown).map(shown_duration).as_deref(), Ok(shown));
        }
        for wrong in
            ["", "90", "0", "s", "soon", "-1s", "+1s", "1e3s", "infs", "5y", "3 weeks", "1h30m", "90 s", "1..5s"]
        {
            let error = duration(wrong).expect_err(wrong);
            assert!(error.contains(wrong) && error.contains("(ms, s, m, h or d)"), "{error}");
        }
        for long in ["36501d".to_owned(), format!("{}d", "9".repeat(400))] {
            assert!(duration(&long).is_err_and(|error| error.contains("a hundred years")), "{long}");
        }
        assert!(positive_duration("0ms").is_err() && positive_duration("1ms").is_ok());
    }

    #[test]
    fn times_are_points_days_or_ages() {
        assert_eq!(time_ms("2026-11-21T08:15:00Z"), Ok(1_795_248_900_000));
        assert_eq!(time_ms("2026-11-21T09:15:00+01:00"), Ok(1_795_248_900_000));
        assert_eq!(time_ms("2026-11-21"), Ok(1_795_219_200_000));
        let now = Utc::now().timestamp_millis();
        let hour_ago = time_ms("1h").expect("valid");
        assert!((now - 3_600_000..now - 3_540_000).contains(&hour_ago), "{hour_ago}");
        for wrong in ["", "h", "-1h", "yesterday", "1w", "é", "9999999999999999d"] {
            assert!(time_ms(wrong).is_err_and(|error| error.contains("is not a time")), "{wrong}");
        }
    }

    #[test]
    fn a_size_is_a_number_and_a_unit() {
        assert_eq!(size("64MiB"), Ok(64u64 << 20));
        assert_eq!(size("1.5KiB"), Ok(1536u32));
        assert_eq!(size("0B"), Ok(0usize));
        for wrong in ["", "64", "64MB", "64mib", "64M", "-1B", "MiB"] {
            let error = size::<u64>(wrong).expect_err(wrong);
            assert!(error.contains("(B, KiB, MiB or GiB)"), "{error}");
        }
        assert!(size::<u64>("0.3B").is_err() && size::<u64>("99999999999GiB").is_err());
        assert!(size::<u32>("4GiB").is_err_and(|error| error.contains("too large")));
    }

    #[test]
    fn an_address_has_a_host_and_a_port() {
        let pair = |text: &str| text.parse().map(|at: HostPort| (at.host, at.port));
        assert_eq!(pair("mqtt-bridge:1883"), Ok(("mqtt-bridge".to_owned(), 1883)));
        assert_eq!(pair("[::1]:8883"), Ok(("::1".to_owned(), 8883)));
        assert_eq!(HostPort::from((std::net::Ipv4Addr::LOCALHOST, 1883)).to_string(), "127.0.0.1:1883");
        for wrong in
            ["", "bridge", ":1883", "bridge:", "bridge:99999", "bridge:+1", "::1:1883", "[::1]", "[bridge]:1", "a b:1"]
        {
            assert!(wrong.parse::<HostPort>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_instance_has_a_name() {
        assert_eq!(instance_name("edge-1"), Ok("edge-1".to_owned()));
        assert!(instance_name(" ").is_err());
        let host = instance_name("@host").expect("this host has a name");
        assert!(!host.is_empty() && host.trim() == host);
    }

    proptest! {
        #[test]
        fn every_whole_number_of_a_unit_is_taken_exactly(number in 0u64..=36_500, unit in 0usize..5) {
            let (name, _) = DURATION_UNITS[unit];
            let unit_ms = [1, 1_000, 60_000, 3_600_000, 86_400_000][unit];
            let value = Duration::from_millis(number * unit_ms);
            prop_assert_eq!(duration(&format!("{number}{name}")), Ok(value));
            prop_assert_eq!(duration(&shown_duration(value)), Ok(value));
            let (name, bytes) = SIZE_UNITS[unit % 4];
            prop_assert_eq!(size(&format!("{number}{name}")), Ok(number * bytes));
        }

        #[test]
        fn no_text_is_taken_without_a_unit_and_none_panics(text in "\\PC*", number in "[0-9.]*") {
            let _ = (duration(&text), size::<u64>(&text), text.parse::<HostPort>(), switch(&text));
            prop_assert!(duration(&number).is_err() && size::<u64>(&number).is_err());
        }

        #[test]
        fn addresses_are_shown_as_they_are_read(address: SocketAddr) {
            prop_assume!(!matches!(address, SocketAddr::V6(v6) if v6.scope_id() != 0));
            let read: HostPort = address.to_string().parse().expect("valid");
            prop_assert_eq!(&read, &HostPort::from(address));
            prop_assert_eq!(read.to_string().parse(), Ok(address));
        }

        #[test]
        fn a_switch_is_one_of_eight_words_in_any_case(on: bool, word in 0usize..4, upper: bool) {
            let words = if on { ["1", "true", "yes", "on"] } else { ["0", "false", "no", "off"] };
            let word = if upper { words[word].to_uppercase() } else { words[word].to_owned() };
            prop_assert_eq!(switch(&word), Ok(on));
            prop_assert!(switch(&(word + "!")).is_err());
        }
    }
}
