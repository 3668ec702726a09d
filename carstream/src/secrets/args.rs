//! What `carstream secrets` is asked for.

use std::path::PathBuf;

/// Create the keys and certificates of a site, as files: add missing ones, keep existing ones.
///
/// pseudonym.key, s3-secret-key, ca.crt, ca.key, mqtt-bridge.crt, mqtt-bridge.key. Safe to run again. Back up
/// pseudonym.key and ca.key: without the first, no pseudonym can be traced back to its car; without the second, no
/// certificate can be renewed.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:
  carstream secrets --dir secrets --server-name bridge.example
      everything that a site needs
  carstream secrets --dir secrets --rotate mqtt-bridge.crt
      renews the bridge's certificate; the bridge loads it without a restart
  carstream secrets --dir secrets --car WVWZZZ1JZXW000001
      a certificate to be a car with:
  mosquitto_pub -h localhost -p 8883 --cafile secrets/ca.crt --cert secrets/WVWZZZ1JZXW000001.crt \\
      --key secrets/WVWZZZ1JZXW000001.key -q 1 -t vehicles/WVWZZZ1JZXW000001/telemetry -m '{}'

If the site has its own CA: put its certificate here as ca.crt, and a server certificate that it signed for the names
that cars connect to as mqtt-bridge.crt, with mqtt-bridge.key. Then no certificate is created here; cars get theirs from
your CA, with the VIN as the one common name (CN) of the subject. If it may sign here, put its key (PKCS #8) here as
ca.key.")]
pub struct Args {
    /// Keep the files in this directory, which is made if it is missing.
    #[arg(long, env = "CARSTREAM_SECRETS", value_name = "DIR")]
    pub dir: PathBuf,
    /// Issue the bridge's certificate for this DNS name or IP address, by which cars reach it; may be repeated, or
    /// comma-separated in the environment.
    ///
    /// Without it: localhost, mqtt-bridge and 127.0.0.1; at --rotate, the names that the certificate has.
    #[arg(long = "server-name", env = "CARSTREAM_SERVER_NAMES", value_name = "NAME")]
    pub server_names: Vec<String>,
    /// Issue the bridge's certificate again although it exists, for another 397 days.
    #[arg(long, value_enum, value_name = "FILE")]
    pub rotate: Option<Rotate>,
    /// Make a key and a certificate for this car, VIN.key and VIN.crt, to try things with; may be repeated.
    #[arg(long = "car", value_name = "VIN")]
    pub cars: Vec<String>,
}

/// What is made anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Rotate {
    /// The certificate, for the existing key.
    #[value(name = "mqtt-bridge.crt")]
    Certificate,
    /// The key, and a certificate for it.
    #[value(name = "mqtt-bridge.key")]
    Key,
}

/// In the compose file, and for who tries it from the same machine.
const DEFAULT_SERVER_NAMES: [&str; 3] = ["localhost", "mqtt-bridge", "127.0.0.1"];

/// Certificates beside which no car's has room.
const TAKEN: [&str; 2] = ["ca", "mqtt-bridge"];

impl Args {
    /// All that cannot work.
    pub(super) fn problems(&self) -> Vec<String> {
        let no_vin = |vin: &&String| !mqtt_bridge::is_vin(vin) || TAKEN.contains(&vin.to_ascii_lowercase().as_str());
        let dir = service::not_a_directory("--dir", &self.dir);
        let cars = self.cars.iter().filter(no_vin).map(|vin| {
            format!("--car {vin}: a VIN has 1 to 32 letters, digits, - and _, and is not ca or mqtt-bridge")
        });
        dir.into_iter().chain(cars).collect()
    }

    /// The names for the bridge's certificate. `present`: those that it has.
    pub(super) fn names(&self, present: Option<Vec<String>>) -> Vec<String> {
        if !self.server_names.is_empty() {
            return self.server_names.clone();
        }
        present.unwrap_or_else(|| DEFAULT_SERVER_NAMES.map(str::to_owned).to_vec())
    }
}

/// Whether this is a VIN as ISO 3779 has it.
pub(super) fn is_real_vin(vin: &str) -> bool {
    let is_of_vin = |b: u8| (b.is_ascii_uppercase() || b.is_ascii_digit()) && !b"IOQ".contains(&b);
    vin.len() == 17 && vin.bytes().all(is_of_vin)
}
