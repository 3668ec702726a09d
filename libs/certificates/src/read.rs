//! What a certificate says of its holder. Whether that is true is for the TLS library to check.

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;

use crate::Error;

/// All certificates of a PEM file, in its order.
///
/// # Errors
/// [`Error::NoCertificate`] if there is none.
pub fn from_pem(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(Error::NoCertificate),
        Err(error) => Err(Error::Unreadable(error.to_string())),
    }
}

/// The common name (CN) of the certificate's subject; `None` if it has none, or more than one, or one that is no text.
pub fn common_name(certificate: &[u8]) -> Result<Option<String>, Error> {
    let certificate = parse(certificate)?;
    let mut names = certificate.subject().iter_common_name();
    let (first, second) = (names.next(), names.next());
    Ok(match (first, second) {
        (Some(name), None) => name.as_str().ok().map(str::to_owned),
        _ => None,
    })
}

/// The DNS names and IP addresses of a server's certificate.
pub fn names(certificate: &[u8]) -> Result<Vec<String>, Error> {
    let certificate = parse(certificate)?;
    let alternatives = certificate.subject_alternative_name().map_err(|error| Error::Unreadable(error.to_string()))?;
    let names = alternatives.iter().flat_map(|names| &names.value.general_names);
    Ok(names
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(octets) => ip_address(octets),
            _ => None,
        })
        .collect())
}

/// When the certificate expires, in seconds since 1970.
pub fn not_after_s(certificate: &[u8]) -> Result<i64, Error> {
    Ok(parse(certificate)?.validity().not_after.timestamp())
}

pub(crate) fn parse(certificate: &[u8]) -> Result<X509Certificate<'_>, Error> {
    match x509_parser::parse_x509_certificate(certificate) {
        Ok((_, certificate)) => Ok(certificate),
        Err(error) => Err(Error::Unreadable(error.to_string())),
    }
}

fn ip_address(octets: &[u8]) -> Option<String> {
    let v4 = <[u8; 4]>::try_from(octets).map(|octets| std::net::Ipv4Addr::from(octets).to_string());
    v4.or_else(|_| <[u8; 16]>::try_from(octets).map(|octets| std::net::Ipv6Addr::from(octets).to_string())).ok()
}
