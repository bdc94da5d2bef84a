//! How long what a request says may be, at one place for all fields of all messages: by their types, and with a table
//! for those that may be longer. A field that is added has a limit without a line here.

use std::sync::LazyLock;

use prost::{Message, Name};
use prost_reflect::{DescriptorPool, DynamicMessage, MapKey, ReflectMessage as _, Value};
use proto::identity::MAX_NAME;
use tonic::Status;

use super::requests::invalid_fields;

/// The messages of the API, as `proto` compiled them.
static MESSAGES: LazyLock<Option<DescriptorPool>> =
    LazyLock::new(|| DescriptorPool::decode(proto::DESCRIPTORS).ok());

/// Mistakes that are told of one request.
const TOLD: usize = 16;

/// The most that a request may say.
#[derive(Debug)]
pub(super) struct Most {
    /// Bytes of a string or of bytes.
    text: usize,
    /// Items of a list.
    list: usize,
    /// Entries of a map.
    map: usize,
    /// Fields that may be longer or must be shorter: their names and bytes.
    fields: &'static [(&'static str, usize)],
}

/// Of whoever calls the API.
pub(super) const CALLER: Most = Most {
    text: 253,
    list: 1024,
    map: 64,
    fields: &[
        ("name", MAX_NAME),
        ("node", MAX_NAME),
        ("container", MAX_NAME),
        ("target_node", MAX_NAME),
        ("fenced_node", MAX_NAME),
        ("policy", MAX_NAME),
        ("policy_name", MAX_NAME),
        ("page_token", MAX_NAME),
        ("request_id", 128),
        // A path, see path_resolution(7).
        ("bundle", 4096),
        // One argument, see execve(2).
        ("args", 128 << 10),
        // As long as a message can be.
        ("stdin", 4 << 20),
    ],
};

/// Of agents, which tell of containers, refusals and decisions. A message that is beyond this would be told again and
/// again: it is far from what they say.
pub(super) const AGENT: Most = Most {
    text: 64 << 10,
    list: 64 << 10,
    map: 1024,
    fields: &[("name", MAX_NAME), ("node", MAX_NAME), ("container", MAX_NAME), ("migration", MAX_NAME)],
};

/// Compares every field of a message with what it may be at most.
///
/// # Errors
/// INVALID_ARGUMENT with the path of each field that is too long.
pub(super) fn check<T: Message + Name>(message: &T, most: &Most) -> Result<(), Status> {
    let known = MESSAGES.as_ref().and_then(|pool| pool.get_message_by_name(&T::full_name()));
    // Messages that are not of this API have no fields (google.protobuf.Empty).
    let Some(descriptor) = known else { return Ok(()) };
    let decoded = DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice());
    let Ok(decoded) = decoded else {
        return Err(Status::internal("a message cannot be decoded by its own descriptor"));
    };
    let mut wrong = Vec::new();
    look(&decoded, "", most, &mut wrong);
    wrong.truncate(TOLD);
    invalid_fields(wrong)
}

type Wrong = Vec<(String, String)>;

fn look(message: &DynamicMessage, above: &str, most: &Most, wrong: &mut Wrong) {
    for (field, value) in message.fields() {
        let path =
            if above.is_empty() { field.name().to_owned() } else { format!("{above}.{}", field.name()) };
        let own = most.fields.iter().find(|(name, _)| *name == field.name());
        value_in(value, &path, own.map_or(most.text, |(_, bytes)| *bytes), most, wrong);
    }
}

fn value_in(value: &Value, path: &str, bytes: usize, most: &Most, wrong: &mut Wrong) {
    let (found, allowed, of) = match value {
        Value::String(text) => (text.len(), bytes, "bytes"),
        Value::Bytes(data) => (data.len(), bytes, "bytes"),
        Value::List(items) => (items.len(), most.list, "items"),
        Value::Map(entries) => (entries.len(), most.map, "entries"),
        Value::Message(inner) if !inner.descriptor().full_name().starts_with("google.") => {
            return look(inner, path, most, wrong);
        }
        // Numbers, enums and well-known types of two numbers.
        _ => return,
    };
    if found > allowed {
        return wrong.push((path.to_owned(), format!("{found} {of} are more than {allowed}")));
    }
    for (index, item) in value.as_list().into_iter().flatten().enumerate() {
        value_in(item, &format!("{path}[{index}]"), bytes, most, wrong);
    }
    for (key, value) in value.as_map().into_iter().flatten() {
        if let MapKey::String(key) = key {
            value_in(&Value::String(key.clone()), path, bytes, most, wrong);
        }
        value_in(value, path, bytes, most, wrong);
    }
}

#[cfg(test)]
mod tests {
    use proto::error::ErrorDetails;
    use proto::v1::{CreateContainerRequest, ExecInput, RunContainerRequest};

    use super::*;

    fn fields<T: Message + Name>(message: &T) -> Vec<String> {
        let status = check(message, &CALLER).unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        ErrorDetails::of(&status).fields.into_iter().map(|(field, _)| field).collect()
    }

    #[test]
    fn what_is_too_long_is_named_by_its_path() {
        let bundle = "x".repeat(4096);
        let mut container = RunContainerRequest { name: "web".into(), bundle, ..Default::default() };
        let request = |container| CreateContainerRequest { container: Some(container), ..Default::default() };
        assert!(check(&request(container.clone()), &CALLER).is_ok());
        container.bundle.push('x');
        container.labels = [("k".to_owned(), "x".repeat(254))].into();
        assert_eq!(fields(&request(container.clone())), ["container.bundle", "container.labels"]);
        container.labels = (0..65).map(|n| (n.to_string(), String::new())).collect();
        assert_eq!(fields(&request(container)), ["container.bundle", "container.labels"]);
        let args = vec![String::new(), "x".repeat((128 << 10) + 1)];
        assert_eq!(fields(&ExecInput { args, ..Default::default() }), ["args[1]"]);
        assert_eq!(fields(&ExecInput { args: vec![String::new(); 1025], ..Default::default() }), ["args"]);
        assert_eq!(fields(&ExecInput { name: "x".repeat(64), ..Default::default() }), ["name"]);
        // A request with mistakes everywhere is not answered with as many.
        let args = vec!["x".repeat((128 << 10) + 1); 20];
        assert_eq!(fields(&ExecInput { args, ..Default::default() }).len(), TOLD);
    }
}
