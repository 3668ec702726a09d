//! The authority that signs: a new one, or the site's own.

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SerialNumber,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::{Duration, OffsetDateTime};

use crate::{Error, read};

/// An authority is replaced when its certificate expires, and everything that it signed with it.
const AUTHORITY_VALID: Duration = Duration::days(3_650);

/// What browsers take at most, and so what people are used to; `carstream secrets --rotate` makes the next one.
const SERVER_VALID: Duration = Duration::days(397);

/// A car of a demo; a manufacturer signs for as long as a car lives, or renews over the air.
const CAR_VALID: Duration = Duration::days(397);

/// The clocks of two machines differ.
const BACKDATED: Duration = Duration::days(1);

/// Signs certificates.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
}

/// A private key, PKCS #8 in PEM. `Debug` does not print it.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyPem(pub String);

/// A key that cars prove themselves with.
#[derive(Debug)]
pub struct CarKey(KeyPair);

impl std::fmt::Debug for KeyPem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyPem(…)")
    }
}

impl KeyPem {
    /// A new key.
    pub fn generate() -> Self {
        Self(generate().serialize_pem())
    }
}

impl CarKey {
    /// A new key.
    pub fn generate() -> Self {
        Self(generate())
    }

    /// The private key.
    pub fn private(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.0.serialize_der()).into()
    }
}

impl Authority {
    /// The certificate, in PEM, of a new authority that has this key.
    ///
    /// # Errors
    /// [`Error::Key`].
    pub fn create(key: &KeyPem) -> Result<String, Error> {
        let key = key_pair(key)?;
        let mut params = params(AUTHORITY_VALID);
        // Authorities are looked for by name, so that no two should have the same.
        let name = format!("carstream site CA {:08x}", rand::random::<u32>());
        params.distinguished_name.push(DnType::CommonName, name);
        // It signs servers and cars, no further authorities.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.self_signed(&key).map(|certificate| certificate.pem()).map_err(|source| sign("the authority", source))
    }

    /// The authority that has this key. `certificates`: PEM, may hold others beside its own.
    ///
    /// # Errors
    /// What is not as it should be, [`Error::NotItsKey`] among it.
    pub fn from_pem(certificates: &[u8], key: &KeyPem) -> Result<Self, Error> {
        let key = key_pair(key)?;
        for der in read::from_pem(certificates)? {
            let certificate = read::parse(&der)?;
            if *certificate.public_key().subject_public_key.data != *key.public_key_raw() {
                continue;
            }
            if !certificate.is_ca() {
                return Err(Error::NotAnAuthority);
            }
            let issuer = Issuer::from_ca_cert_der(&der, key).map_err(|error| Error::Unreadable(error.to_string()))?;
            return Ok(Self { issuer });
        }
        Err(Error::NotItsKey)
    }

    /// A certificate for a server that is reached by these DNS names and IP addresses, in PEM.
    pub fn server(&self, names: &[String], key: &KeyPem) -> Result<String, Error> {
        let name = names.first().map_or("server", String::as_str);
        let mut params = CertificateParams::new(names).map_err(|source| sign(name, source))?;
        date(&mut params, SERVER_VALID);
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        Ok(self.sign(&params, name, &key_pair(key)?)?.pem())
    }

    /// A certificate for a car, in PEM: its subject's common name is the VIN.
    pub fn car(&self, vin: &str, key: &KeyPem) -> Result<String, Error> {
        Ok(self.sign(&car_params(vin), vin, &key_pair(key)?)?.pem())
    }

    /// The same as DER, for a process that is many cars with one key.
    pub fn car_with_key(&self, vin: &str, key: &CarKey) -> Result<CertificateDer<'static>, Error> {
        Ok(self.sign(&car_params(vin), vin, &key.0)?.der().clone())
    }

    fn sign(&self, params: &CertificateParams, holder: &str, key: &KeyPair) -> Result<Certificate, Error> {
        params.signed_by(key, &self.issuer).map_err(|source| sign(holder, source))
    }
}

fn car_params(vin: &str) -> CertificateParams {
    let mut params = params(CAR_VALID);
    params.distinguished_name.push(DnType::CommonName, vin);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
}

fn params(valid: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    date(&mut params, valid);
    params
}

fn date(params: &mut CertificateParams, valid: Duration) {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - BACKDATED;
    params.not_after = now + valid;
    params.use_authority_key_identifier_extension = true;
    // Left alone, it would be made of the public key: the same for all cars that share one.
    params.serial_number = Some(SerialNumber::from(rand::random::<[u8; 16]>().to_vec()));
}

fn generate() -> KeyPair {
    KeyPair::generate().expect("the system has random numbers")
}

fn key_pair(key: &KeyPem) -> Result<KeyPair, Error> {
    KeyPair::from_pem(&key.0).map_err(Error::Key)
}

fn sign(holder: &str, source: rcgen::Error) -> Error {
    Error::Sign { holder: holder.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authority() -> (Authority, String, KeyPem) {
        let key = KeyPem::generate();
        let certificate = Authority::create(&key).unwrap();
        (Authority::from_pem(certificate.as_bytes(), &key).unwrap(), certificate, key)
    }

    fn only(pem: &str) -> CertificateDer<'static> {
        let mut found = read::from_pem(pem.as_bytes()).unwrap();
        assert_eq!(found.len(), 1);
        found.remove(0)
    }

    #[test]
    fn a_car_is_its_common_name() {
        let (authority, ..) = authority();
        let car = only(&authority.car("WVWZZZ1JZXW000001", &KeyPem::generate()).unwrap());
        assert_eq!(read::common_name(&car).unwrap().as_deref(), Some("WVWZZZ1JZXW000001"));
        let key = CarKey::generate();
        let (first, second) = (authority.car_with_key("A", &key).unwrap(), authority.car_with_key("B", &key).unwrap());
        let (first, second) = (read::parse(&first).unwrap(), read::parse(&second).unwrap());
        assert_ne!(first.raw_serial(), second.raw_serial(), "an authority gives each number once");
        assert!(first.issuer().to_string().starts_with("CN=carstream site CA "));
    }

    #[test]
    fn a_certificate_with_no_or_two_common_names_has_none() {
        let key = generate();
        let mut params = params(CAR_VALID);
        let name = |params: &CertificateParams| read::common_name(params.self_signed(&key).unwrap().der()).unwrap();
        assert_eq!(name(&params), None);
        params.distinguished_name.push(DnType::CommonName, "A");
        assert_eq!(name(&params).as_deref(), Some("A"));
        params.distinguished_name.push(DnType::CustomDnType(vec![2, 5, 4, 3]), "B");
        assert_eq!(name(&params), None);
    }

    #[test]
    fn a_server_has_its_names_and_a_year() {
        let (authority, ..) = authority();
        let names: Vec<String> = ["localhost", "mqtt-bridge", "127.0.0.1", "::1"].map(str::to_owned).to_vec();
        let server = only(&authority.server(&names, &KeyPem::generate()).unwrap());
        assert_eq!(read::names(&server).unwrap(), names);
        let now_s = OffsetDateTime::now_utc().unix_timestamp();
        assert!((now_s + 390 * 86_400..now_s + 400 * 86_400).contains(&read::not_after_s(&server).unwrap()));
        assert!(authority.server(&["ä".to_owned()], &KeyPem::generate()).is_err(), "no DNS name");
    }

    #[test]
    fn an_authority_is_found_by_its_key_among_others() {
        let ((_, ours, key), (_, other, _)) = (authority(), authority());
        let both = format!("{other}\n{ours}");
        assert!(Authority::from_pem(both.as_bytes(), &key).is_ok());
        let wrong = |pem: &str, key: &KeyPem| Authority::from_pem(pem.as_bytes(), key).unwrap_err();
        assert!(matches!(wrong(&other, &key), Error::NotItsKey));
        assert!(matches!(wrong("", &key), Error::NoCertificate));
        assert!(matches!(wrong(&ours, &KeyPem(ours.clone())), Error::Key(_)));
        let (authority, ..) = authority();
        let key = KeyPem::generate();
        assert!(matches!(wrong(&authority.car("A", &key).unwrap(), &key), Error::NotAnAuthority));
        assert_eq!(format!("{key:?}"), "KeyPem(…)");
    }
}
