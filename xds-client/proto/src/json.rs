//! Protobuf messages to and from their canonical JSON, by name. `google.protobuf.Any` is expanded both ways (`@type`).
use prost::Message;
use prost_reflect::{DeserializeOptions, DynamicMessage, MessageDescriptor, ReflectMessage, SerializeOptions};
use serde_json::Value;
use serde_json::value::Serializer;

use crate::{descriptors, message_name};

/// Why a message could not be converted. The first field is the message's name.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// No descriptor of that name: add its file to `roots.txt`, or treat it as unknown.
    #[error("unknown message {0}")]
    UnknownMessage(String),
    /// The JSON is not a form of this message.
    #[error("the JSON is not a {0}")]
    NotThisMessage(String, #[source] serde_json::Error),
    /// The bytes are not an encoding of this message.
    #[error("the bytes are not a {0}")]
    NotAnEncoding(String, #[source] prost::DecodeError),
    /// The message has no JSON form, since an `Any` in it is of an unknown type or is broken.
    #[error("a {0} that has no JSON form")]
    NoJsonForm(String, #[source] serde_json::Error),
}

/// Encodes the JSON form of a message. Field names may be the original ones or camel case; an unknown field is an error.
///
/// # Errors
/// An unknown message name, or JSON that is not a form of it.
pub fn message_from_json(type_url_or_name: &str, json: &Value) -> Result<Vec<u8>, JsonError> {
    dynamic_from_json(type_url_or_name, json).map(|message| message.encode_to_vec())
}

/// As [`message_from_json`], not encoded yet.
///
/// # Errors
/// As [`message_from_json`].
pub fn dynamic_from_json(type_url_or_name: &str, json: &Value) -> Result<DynamicMessage, JsonError> {
    let descriptor = descriptor(type_url_or_name)?;
    let name = descriptor.full_name().to_owned();
    DynamicMessage::deserialize_with_options(descriptor, json, &DeserializeOptions::new())
        .map_err(|error| JsonError::NotThisMessage(name, error))
}

/// The JSON form of an encoded message: original field names, defaults left out, as istiod's own dumps. Fields that the descriptors
/// do not know have no JSON form and are left out; the coverage walk is what reports them.
///
/// # Errors
/// An unknown message name, bytes that are not an encoding of it, or an `Any` inside that is not readable.
pub fn message_to_json(type_url_or_name: &str, bytes: &[u8]) -> Result<Value, JsonError> {
    let descriptor = descriptor(type_url_or_name)?;
    let name = descriptor.full_name().to_owned();
    let message = DynamicMessage::decode(descriptor, bytes).map_err(|error| JsonError::NotAnEncoding(name, error))?;
    dynamic_to_json(&message)
}

/// As [`message_to_json`], of a decoded message.
///
/// # Errors
/// An `Any` inside that is not readable.
pub fn dynamic_to_json(message: &DynamicMessage) -> Result<Value, JsonError> {
    let options = SerializeOptions::new().use_proto_field_name(true).skip_default_fields(true);
    message.serialize_with_options(Serializer, &options).map_err(|error| {
        let name = message.descriptor().full_name().to_owned();
        JsonError::NoJsonForm(name, error)
    })
}

fn descriptor(type_url_or_name: &str) -> Result<MessageDescriptor, JsonError> {
    let name = message_name(type_url_or_name);
    descriptors().get_message_by_name(name).ok_or_else(|| JsonError::UnknownMessage(name.to_owned()))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use serde_json::json;

    use super::*;

    #[test]
    fn an_any_is_expanded_both_ways() {
        let json = json!({
            "name": "envoy.filters.http.router",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
                "start_child_span": true,
            },
        });
        let name = "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter";
        let bytes = message_from_json(name, &json).unwrap();
        assert_eq!(message_to_json(&format!("type.googleapis.com/{name}"), &bytes).unwrap(), json);
    }

    #[test]
    fn an_unknown_message_field_or_any_is_an_error_that_names_it() {
        let unknown = message_from_json("shop.v1.Cart", &json!({})).unwrap_err();
        assert!(matches!(&unknown, JsonError::UnknownMessage(name) if name == "shop.v1.Cart"));
        let field = message_from_json("stats.PluginConfig", &json!({"reporters": 1})).unwrap_err();
        assert!(matches!(&field, JsonError::NotThisMessage(_, error) if error.to_string().contains("reporters")));
        let any = json!({"typed_config": {"@type": "type.googleapis.com/shop.v1.Cart"}});
        let any = message_from_json("envoy.config.core.v3.TransportSocket", &any).unwrap_err();
        assert!(matches!(&any, JsonError::NotThisMessage(_, error) if error.to_string().contains("shop.v1.Cart")));
    }

    #[test]
    fn bytes_that_are_no_encoding_are_an_error() {
        let error = message_to_json("stats.PluginConfig", &[0xff]).unwrap_err();
        assert!(matches!(error, JsonError::NotAnEncoding(..)));
    }
}
