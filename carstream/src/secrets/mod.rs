//! The secrets of a site, as files in one directory: made where they are missing, kept where they are.
//!
//! ```text
//!  pseudonym.key                    for preprocessor and bridge: which pseudonym is which car
//!  s3-secret-key                    for the object store and who uses it
//!  ca.key ──► ca.crt                signs for the bridge and for cars, simulated ones among them
//!  mqtt-bridge.key ──► .crt         the bridge's TLS port
//!  VIN.key ──► VIN.crt              one car, when asked for
//! ```
//!
//! A file is complete or missing, and the directory is locked meanwhile, so that two processes at once create one set.
//! Keys come before their certificates: a killed process leaves at most a key without one, and the next run signs it.
//!
//! What it deliberately does not do: change a pseudonym key, which would cut every car off its past, or replace an
//! authority, without which no certificate of it is worth anything.

mod args;
mod vault;

use std::path::PathBuf;

use anyhow::{Context, bail};
use certificates::{Authority, KeyPem};
use rand::TryRng;
use rand::rngs::SysRng;
use service::ConfigError;

pub use args::{Args, Rotate};
use vault::Vault;

const CA_CERTIFICATE: &str = "ca.crt";
const CA_KEY: &str = "ca.key";
const BRIDGE_CERTIFICATE: &str = "mqtt-bridge.crt";
const BRIDGE_KEY: &str = "mqtt-bridge.key";

/// Runs `carstream secrets`.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let directory = args.dir.clone();
    let made = tokio::task::spawn_blocking(move || make(&args)).await.context("the command did not finish")??;
    for path in &made {
        println!("made {}", path.display());
    }
    if made.is_empty() {
        println!("nothing to do: everything is in {}", directory.display());
    }
    Ok(())
}

/// Makes what is missing, and gives the files that were written, in order. Blocking: waits for others at the directory.
///
/// # Errors
/// [`ConfigError`] for settings that cannot work; files that cannot be read or written; a certificate that has to be
/// signed where the authority's key is elsewhere.
pub fn make(args: &Args) -> anyhow::Result<Vec<PathBuf>> {
    ConfigError::check(args.problems())?;
    let mut vault = Vault::open(&args.dir)?;
    vault.ensure("pseudonym.key", || random_hex(32))?;
    vault.ensure("s3-secret-key", || random_hex(20))?;
    let authority = authority(&mut vault)?;
    bridge(&mut vault, args, authority.as_ref())?;
    for vin in &args.cars {
        if !args::is_real_vin(vin) {
            tracing::warn!(
                "--car {vin}: a real VIN has 17 characters, capital letters and digits without I, O and Q; readings of \
                 this car become dead letters"
            );
        }
        car(&mut vault, vin, authority.as_ref())?;
    }
    Ok(vault.made())
}

/// The authority; `None` if only its certificate is here, and the key is elsewhere.
fn authority(vault: &mut Vault) -> anyhow::Result<Option<Authority>> {
    if vault.read(CA_CERTIFICATE)?.is_some() && vault.read(CA_KEY)?.is_none() {
        return Ok(None);
    }
    let key = KeyPem(vault.ensure(CA_KEY, || Ok(KeyPem::generate().0))?);
    let certificate = vault.ensure(CA_CERTIFICATE, || Ok(Authority::create(&key)?))?;
    let authority = Authority::from_pem(certificate.as_bytes(), &key);
    authority.map(Some).with_context(|| format!("cannot sign with {CA_CERTIFICATE} and {CA_KEY}"))
}

fn bridge(vault: &mut Vault, args: &Args, authority: Option<&Authority>) -> anyhow::Result<()> {
    let present = vault.read(BRIDGE_CERTIFICATE)?;
    let names = args.names(present.as_deref().map(names_of).transpose()?);
    match args.rotate {
        Some(_) if authority.is_none() => bail!(signed_elsewhere(BRIDGE_CERTIFICATE, &names.join(", "))),
        Some(Rotate::Key) => {
            // The certificate goes first: whoever finds none signs one, but a wrong one would stay.
            vault.remove(BRIDGE_CERTIFICATE)?;
            vault.replace(BRIDGE_KEY, &KeyPem::generate().0)?;
        }
        Some(Rotate::Certificate) | None if present.is_some() && vault.read(BRIDGE_KEY)?.is_none() => bail!(
            "{BRIDGE_CERTIFICATE} is here without {BRIDGE_KEY}: put the key beside it, or renew both with --rotate \
             {BRIDGE_KEY}"
        ),
        Some(Rotate::Certificate) | None => {}
    }
    let wanted = args.rotate.is_some() || present.is_none();
    if !wanted {
        return Ok(());
    }
    let Some(authority) = authority else { bail!(signed_elsewhere(BRIDGE_CERTIFICATE, &names.join(", "))) };
    let key = KeyPem(vault.ensure(BRIDGE_KEY, || Ok(KeyPem::generate().0))?);
    vault.replace(BRIDGE_CERTIFICATE, &authority.server(&names, &key)?)
}

fn car(vault: &mut Vault, vin: &str, authority: Option<&Authority>) -> anyhow::Result<()> {
    let (certificate, key) = (format!("{vin}.crt"), format!("{vin}.key"));
    if vault.read(&certificate)?.is_some() {
        return Ok(());
    }
    let Some(authority) = authority else { bail!(signed_elsewhere(&certificate, &format!("CN={vin}"))) };
    let key = KeyPem(vault.ensure(&key, || Ok(KeyPem::generate().0))?);
    vault.replace(&certificate, &authority.car(vin, &key)?)
}

fn names_of(certificate: &str) -> anyhow::Result<Vec<String>> {
    let read = || certificates::names(&certificates::from_pem(certificate.as_bytes())?[0]);
    read().with_context(|| format!("cannot read {BRIDGE_CERTIFICATE}"))
}

fn signed_elsewhere(certificate: &str, holder: &str) -> String {
    format!(
        "cannot create {certificate}: {CA_KEY} is not beside {CA_CERTIFICATE}. Let that authority sign one for \
         {holder}, and put it here with its key"
    )
}

/// From the system: secrets have no seed.
fn random_hex(bytes: usize) -> anyhow::Result<String> {
    let mut random = vec![0; bytes];
    SysRng.try_fill_bytes(&mut random).context("the system has no random numbers")?;
    Ok(hex::encode(random))
}
