//! docs/json.md names every field of the objects, and no other.

use std::collections::BTreeSet;
use std::path::Path;

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor};
use serde_json::Value;

use super::{evacuation, policy, resource};

/// A message with every field set, also those that are added later.
pub(crate) fn full<M: Message + Default>(name: &str) -> M {
    let pool = DescriptorPool::decode(proto::DESCRIPTORS).unwrap();
    let message = fill(&pool.get_message_by_name(&format!("gantry.v1.{name}")).unwrap());
    M::decode(message.encode_to_vec().as_slice()).unwrap()
}

fn fill(descriptor: &MessageDescriptor) -> DynamicMessage {
    let mut message = DynamicMessage::new(descriptor.clone());
    for field in descriptor.fields() {
        let value = if field.is_map() {
            let text = prost_reflect::Value::String("value".into());
            prost_reflect::Value::Map([(MapKey::String("KEY".into()), text)].into())
        } else if field.is_list() {
            prost_reflect::Value::List(vec![one(&field)])
        } else {
            one(&field)
        };
        message.set_field(&field, value);
    }
    message
}

fn one(field: &FieldDescriptor) -> prost_reflect::Value {
    use prost_reflect::Value as V;
    match field.kind() {
        Kind::Double => V::F64(1.5),
        Kind::Float => V::F32(1.5),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => V::I32(1),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => V::I64(1),
        Kind::Uint32 | Kind::Fixed32 => V::U32(1),
        Kind::Uint64 | Kind::Fixed64 => V::U64(1),
        Kind::Bool => V::Bool(true),
        Kind::String => V::String("text".into()),
        Kind::Bytes => V::Bytes(b"bytes".to_vec().into()),
        Kind::Message(inner) => V::Message(fill(&inner)),
        Kind::Enum(_) => V::EnumNumber(1),
    }
}

/// The paths of a value's fields: `a.b`, and `a[].b` for what is in a list.
fn paths(value: &Value, at: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                // Limits have names that are data here, as the keys of labels are.
                let name = if at.ends_with(".origins") { "KEY" } else { name };
                let path = if at.is_empty() { name.to_owned() } else { format!("{at}.{name}") };
                paths(value, &path, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| paths(item, &format!("{at}[]"), found)),
        _ => drop(found.insert(at.to_owned())),
    }
}

/// The paths in the section of one kind: what stands first in each row of its table.
fn documented(kind: &str) -> BTreeSet<String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/json.md");
    let text = std::fs::read_to_string(file).unwrap();
    let heading = format!("## {kind}");
    let section = text.lines().skip_while(|line| *line != heading).skip(1);
    let rows = section.take_while(|line| !line.starts_with("## ")).filter_map(|line| {
        let cell = line.strip_prefix("| `")?;
        Some(cell.split_once('`')?.0.to_owned())
    });
    rows.collect()
}

/// Compares an object that has every field with the section of its kind, both ways.
pub(crate) fn compare(kind: &str, object: &Value) {
    let mut found = BTreeSet::new();
    paths(object, "", &mut found);
    let documented = documented(kind);
    let missing: Vec<_> = found.difference(&documented).collect();
    let gone: Vec<_> = documented.difference(&found).collect();
    assert!(missing.is_empty(), "fields of a {kind} that docs/json.md does not name: {missing:#?}");
    assert!(gone.is_empty(), "docs/json.md names fields that a {kind} does not have: {gone:#?}");
}

#[test]
fn every_field_is_documented() {
    compare("Node", &resource::node(&full("Node")));
    compare("Container", &resource::container(&full("Container")));
    compare("Migration", &resource::migration(&full("Migration")));
    compare("Evacuation", &evacuation::object(&full("Evacuation")));
    compare("MigrationPolicy", &policy::object(&full("MigrationPolicy")));
    compare("Check", &resource::verdict("web", &full("CheckMoveResponse")));
}

#[test]
fn a_field_more_or_less_is_noticed() {
    let of = |kind: &str| documented(kind).len();
    assert!(of("Node") > 15 && of("Migration") > 60 && of("Nothing") == 0);
    let mut object = resource::container(&full("Container"));
    object["status"]["novel"] = serde_json::json!([{"field": 1}]);
    let more = std::panic::catch_unwind(|| compare("Container", &object)).unwrap_err();
    assert!(more.downcast_ref::<String>().unwrap().contains("status.novel[].field"));
    object["status"] = serde_json::json!({});
    let less = std::panic::catch_unwind(|| compare("Container", &object)).unwrap_err();
    assert!(less.downcast_ref::<String>().unwrap().contains("status.memoryBytes"));
}
