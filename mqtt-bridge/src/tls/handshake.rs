//! From a socket to a client that has proved which car it is.

use std::sync::Arc;

use bytes::BytesMut;
use tokio::net::TcpStream;
use tokio::time::timeout_at;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::Tls;
use super::refusal::{Failure, LOST};
use crate::clients::Slot;
use crate::close::{Close, Refusal};
use crate::connection::{self, Arrival};
use crate::shared::Shared;
use crate::topics;

/// Shakes hands with a client, and serves it as any other, but as the car of its certificate.
pub(crate) async fn serve(shared: Arc<Shared>, slot: Slot, socket: TcpStream, tls: Arc<Tls>, mut arrival: Arrival) {
    tls.metrics.handshakes.inc();
    // Boxed: what a handshake needs is given back before the connection begins.
    let shaken = Box::pin(shake_hands(&shared, &slot, socket, &tls, &arrival)).await;
    tls.metrics.handshakes.dec();
    let Some(stream) = shaken else {
        shared.closed_one();
        return;
    };
    match car(&stream) {
        Ok(vin) => {
            arrival.place = shared.cars.enter(&vin, shared.rules.limits.max_connections_per_car);
            if arrival.place.is_none() {
                arrival.refusal.get_or_insert(Refusal::TooManyOfCar);
            }
            arrival.car = Some(vin);
        }
        Err(failure) => {
            // Told in CONNACK, which every MQTT client shows.
            note(&tls, &failure);
            arrival.refusal.get_or_insert(Refusal::NoVin);
        }
    }
    drop(tls);
    connection::serve(shared, slot, stream, arrival).await;
}

/// Logs why a client is refused; not that one went away.
fn note(tls: &Tls, failure: &Failure) {
    if failure.reason != LOST {
        tls.complaints.note(failure.reason, "refused", &failure.sentence);
    }
}

/// `None`: it came to nothing, for a reason that is counted and logged.
async fn shake_hands(
    shared: &Shared,
    slot: &Slot,
    socket: TcpStream,
    tls: &Tls,
    arrival: &Arrival,
) -> Option<Box<TlsStream<TcpStream>>> {
    let deadline = arrival.opened + shared.rules.limits.connect_timeout;
    let accepting = TlsAcceptor::from(tls.config()).accept(socket).into_fallible();
    let (failure, socket) = tokio::select! {
        accepted = timeout_at(deadline, accepting) => match accepted {
            Ok(Ok(stream)) => return Some(Box::new(stream)),
            Ok(Err((error, socket))) => (Failure::from(&error), Some(socket)),
            Err(_) => (Failure::new("tls-timeout", "the handshake took longer than --connect-timeout"), None),
        },
        // The bridge stops: who has no name yet gets no other mail.
        () = slot.mailbox.arrived() => return None,
    };
    note(tls, &failure);
    tls.metrics.refused_connect(failure.reason);
    if let Some(socket) = socket {
        // So that it reads the alert that is on its way.
        connection::farewell(socket, Close::Refused, BytesMut::new()).await;
    }
    None
}

/// The VIN of the client's certificate, which is known to be of an authority of ours.
fn car(stream: &TlsStream<TcpStream>) -> Result<Box<str>, Failure> {
    let no_vin = |why: &str| {
        let sentence = format!("its certificate has no VIN: {why}");
        Failure::new(Refusal::NoVin.label(), sentence)
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let certificate = certificate.ok_or_else(|| no_vin("there is no certificate"))?;
    match certificates::common_name(certificate) {
        Ok(Some(name)) if topics::is_vin(&name) => Ok(name.into()),
        Ok(Some(_)) => Err(no_vin("its common name (CN) is not 1 to 32 letters, digits, - and _")),
        Ok(None) => Err(no_vin("its subject needs one common name (CN), which is the VIN")),
        Err(error) => Err(no_vin(&error.to_string())),
    }
}
