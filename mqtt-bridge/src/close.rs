//! Why connections end, and the answer to the client: the MQTT 5 reason, the word in metrics and logs.

use rmqtt_codec::v3::ConnectAckReason as V3Reason;
use rmqtt_codec::v5::{ConnectAckReason as V5Reason, DisconnectReasonCode};

use crate::wire::Malformed;

/// Why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Close {
    /// The client said DISCONNECT.
    Goodbye,
    /// The client closed the connection without a word, or the network did.
    Lost,
    /// No CONNECT in time.
    ConnectTimeout,
    /// Bytes that are not MQTT as the standard has it.
    Malformed,
    /// MQTT, but not at this point.
    ProtocolError,
    /// A packet above `--max-packet-bytes`.
    PacketTooLarge,
    /// A packet that was begun and not sent whole in time.
    PacketTimeout,
    /// Nothing heard for one and a half times the keep-alive.
    KeepAlive,
    /// Not read for longer than `--max-pause`: the log, or the client, did not take what it was sent.
    PausedTooLong,
    /// Another connection came with the same client identifier.
    TakenOver,
    /// The bridge is stopping.
    Draining,
    /// A publish to a topic that is none of a car's.
    TopicInvalid,
    /// A publish for another car.
    NotAuthorized,
    /// QoS 2.
    QosNotSupported,
    /// MQTT 5: a retained message, though the bridge said that it keeps none.
    RetainNotSupported,
    /// MQTT 5: a topic alias, though the bridge said that it takes none.
    TopicAliasInvalid,
    /// MQTT 5: more unacknowledged publishes than the bridge said it takes.
    ReceiveMaximumExceeded,
    /// The log could not say that a publish is durable: the car sends it again.
    NotDurable,
    /// The log refused a publish.
    LogRefused,
    /// A publish is larger than its topic in the log takes.
    TooLargeForLog,
    /// CONNECT was answered with a refusal.
    Refused,
}

impl Close {
    /// The word in metrics and logs.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Close::Goodbye => "disconnect",
            Close::Lost => "lost",
            Close::ConnectTimeout => "connect-timeout",
            Close::Malformed => "malformed",
            Close::ProtocolError => "protocol-error",
            Close::PacketTooLarge => "packet-too-large",
            Close::PacketTimeout => "packet-timeout",
            Close::KeepAlive => "keep-alive",
            Close::PausedTooLong => "paused-too-long",
            Close::TakenOver => "taken-over",
            Close::Draining => "draining",
            Close::TopicInvalid => "topic-invalid",
            Close::NotAuthorized => "not-authorized",
            Close::QosNotSupported => "qos-not-supported",
            Close::RetainNotSupported => "retain-not-supported",
            Close::TopicAliasInvalid => "topic-alias-invalid",
            Close::ReceiveMaximumExceeded => "receive-maximum-exceeded",
            Close::NotDurable => "not-durable",
            Close::LogRefused => "log-refused",
            Close::TooLargeForLog => "too-large-for-log",
            Close::Refused => "refused",
        }
    }

    /// Whether the client, and nobody else, can do something about it: it breaks a rule, and would break it again.
    pub(crate) fn is_of_client(self) -> bool {
        matches!(
            self,
            Close::Malformed
                | Close::ProtocolError
                | Close::PacketTooLarge
                | Close::PacketTimeout
                | Close::TooLargeForLog
                | Close::TopicInvalid
                | Close::NotAuthorized
                | Close::QosNotSupported
                | Close::RetainNotSupported
                | Close::TopicAliasInvalid
                | Close::ReceiveMaximumExceeded
        )
    }

    /// The reason of the DISCONNECT for an MQTT 5 client; `None` if no client is left to receive it.
    pub(crate) fn disconnect_reason(self) -> Option<DisconnectReasonCode> {
        use DisconnectReasonCode as Reason;
        Some(match self {
            Close::Goodbye | Close::Lost | Close::ConnectTimeout | Close::Refused => return None,
            Close::Malformed => Reason::MalformedPacket,
            Close::ProtocolError => Reason::ProtocolError,
            Close::PacketTooLarge => Reason::PacketTooLarge,
            Close::PacketTimeout => Reason::ImplementationSpecificError,
            Close::KeepAlive => Reason::KeepAliveTimeout,
            Close::PausedTooLong => Reason::ServerBusy,
            Close::TakenOver => Reason::SessionTakenOver,
            Close::Draining => Reason::ServerShuttingDown,
            Close::TopicInvalid => Reason::TopicNameInvalid,
            Close::NotAuthorized => Reason::NotAuthorized,
            Close::QosNotSupported => Reason::QosNotSupported,
            Close::RetainNotSupported => Reason::RetainNotSupported,
            Close::TopicAliasInvalid => Reason::TopicAliasInvalid,
            Close::ReceiveMaximumExceeded => Reason::ReceiveMaximumExceeded,
            Close::NotDurable => Reason::UnspecifiedError,
            Close::LogRefused => Reason::ImplementationSpecificError,
            Close::TooLargeForLog => Reason::QuotaExceeded,
        })
    }

    /// One sentence for the people who read the client's log (MQTT 5's reason string).
    pub(crate) fn explanation(self) -> &'static str {
        match self {
            Close::TopicInvalid => "publish to vehicles/{vin}/LEVEL, with a level that this site's contract has",
            Close::NotAuthorized => {
                "a client may publish only for the VIN in its certificate, or without one, its client id"
            }
            Close::QosNotSupported => "this bridge supports QoS 0 and 1",
            Close::RetainNotSupported => "this bridge does not support retained messages",
            Close::PacketTooLarge => "larger than the Maximum Packet Size of CONNACK",
            Close::PacketTimeout => "a packet was begun, and did not come whole in time",
            Close::PausedTooLong => "the log is not keeping up",
            Close::NotDurable => "the log did not confirm: send again",
            Close::LogRefused => "the log refused the message",
            Close::TooLargeForLog => "larger than the topic in the log takes",
            other => other.label(),
        }
    }
}

impl From<Malformed> for Close {
    fn from(malformed: Malformed) -> Self {
        match malformed {
            Malformed::Packet | Malformed::Version | Malformed::ClientId => Close::Malformed,
            Malformed::Protocol => Close::ProtocolError,
            Malformed::TooLarge => Close::PacketTooLarge,
        }
    }
}

/// Why a CONNECT is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Neither MQTT 3.1.1 nor 5.
    Version,
    /// Not a CONNECT packet as the standard has it.
    Malformed,
    /// No client identifier for a session to be kept, or one that is too long.
    ClientId,
    /// An authentication exchange, which the bridge doesn't have.
    Authentication,
    /// The will's topic is not `vehicles/{vin}/status`.
    WillTopic,
    /// The will is another car's.
    WillNotAuthorized,
    /// MQTT 5: a will with QoS 2.
    WillQos,
    /// MQTT 5: a will to be retained.
    WillRetain,
    /// A will above the bound.
    WillTooLarge,
    /// As many connections as are allowed are open.
    Busy,
    /// As many connections as one car may have are open.
    TooManyOfCar,
    /// The client's certificate names no car.
    NoVin,
}

impl Refusal {
    /// The word in metrics and logs.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Refusal::Version => "version",
            Refusal::Malformed => "malformed",
            Refusal::ClientId => "client-id",
            Refusal::Authentication => "authentication",
            Refusal::WillTopic => "will-topic",
            Refusal::WillNotAuthorized => "will-not-authorized",
            Refusal::WillQos => "will-qos",
            Refusal::WillRetain => "will-retain",
            Refusal::WillTooLarge => "will-too-large",
            Refusal::Busy => "busy",
            Refusal::TooManyOfCar => "too-many-of-car",
            Refusal::NoVin => "no-vin",
        }
    }

    /// The return code for an MQTT 3.1.1 client. It has only five; "not authorized" covers a will that is not allowed.
    /// `None`: the standard wants the connection closed without a CONNACK.
    pub(crate) fn v3(self) -> Option<V3Reason> {
        match self {
            Refusal::Version => Some(V3Reason::UnacceptableProtocolVersion),
            Refusal::Malformed => None,
            Refusal::ClientId => Some(V3Reason::IdentifierRejected),
            Refusal::Busy | Refusal::TooManyOfCar => Some(V3Reason::ServiceUnavailable),
            Refusal::Authentication
            | Refusal::NoVin
            | Refusal::WillTopic
            | Refusal::WillNotAuthorized
            | Refusal::WillQos
            | Refusal::WillRetain
            | Refusal::WillTooLarge => Some(V3Reason::NotAuthorized),
        }
    }

    /// The reason code for an MQTT 5 client.
    pub(crate) fn v5(self) -> V5Reason {
        match self {
            Refusal::Version => V5Reason::UnsupportedProtocolVersion,
            Refusal::Malformed => V5Reason::MalformedPacket,
            Refusal::ClientId => V5Reason::ClientIdentifierNotValid,
            Refusal::Authentication => V5Reason::BadAuthenticationMethod,
            Refusal::WillTopic => V5Reason::TopicNameInvalid,
            Refusal::WillNotAuthorized => V5Reason::NotAuthorized,
            Refusal::WillQos => V5Reason::QosNotSupported,
            Refusal::WillRetain => V5Reason::RetainNotSupported,
            Refusal::WillTooLarge => V5Reason::PacketTooLarge,
            Refusal::Busy => V5Reason::ServerBusy,
            Refusal::TooManyOfCar => V5Reason::QuotaExceeded,
            Refusal::NoVin => V5Reason::NotAuthorized,
        }
    }
}
