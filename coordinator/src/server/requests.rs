//! What requests have in common: ids, pages, labels, wrong fields.

use std::collections::HashMap;

use prost::Message;
use proto::error::{ApiError, invalid_field};
use tonic::{Code, Status};

use crate::store::Request;

/// The longest request id, bytes.
const MAX_REQUEST_ID: usize = 128;

/// Checks a request id; empty means none.
pub(super) fn check_request_id(id: &str) -> Result<Option<&str>, Status> {
    if id.len() > MAX_REQUEST_ID {
        return Err(invalid_field("request_id", format!("is longer than {MAX_REQUEST_ID} bytes")).status());
    }
    Ok(Some(id).filter(|id| !id.is_empty()))
}

/// The same id with another request is a mistake of the caller.
///
/// Compared as messages, too: maps are encoded in any order.
pub(super) fn same_request<M: Message + Default + PartialEq>(
    known: &Request,
    encoded: &[u8],
) -> Result<(), Status> {
    let same = || M::decode(known.request.as_slice()).ok() == M::decode(encoded).ok();
    if known.request == encoded || same() {
        return Ok(());
    }
    let message = "request_id was used for another request: use a new one";
    Err(ApiError::new(Code::InvalidArgument, "REQUEST_ID_REUSED", message)
        .field("request_id", "was used for another request")
        .status())
}

/// Items on a page when the caller does not say, and the most.
const PAGE: usize = 100;
const MAX_PAGE: usize = 1000;

/// How many items a page shall have.
pub(super) fn page_size(asked: i32) -> Result<usize, Status> {
    match usize::try_from(asked) {
        Ok(0) => Ok(PAGE),
        Ok(size) => Ok(size.min(MAX_PAGE)),
        Err(_) => Err(invalid_field("page_size", "is negative").status()),
    }
}

/// A page token is the last name of the page before.
pub(super) fn page_start(token: &str) -> Result<&str, Status> {
    if !token.is_empty() {
        let bad = |_| invalid_field("page_token", "was not made by this API").status();
        proto::identity::check_name(token).map_err(bad)?;
    }
    Ok(token)
}

/// One page of `all`, which is sorted by name, and the next page's token.
pub(super) fn page<T>(all: Vec<T>, size: usize, start: &str, name: impl Fn(&T) -> &str) -> (Vec<T>, String) {
    let mut rest = all.into_iter().filter(|item| name(item) > start);
    let page: Vec<T> = rest.by_ref().take(size).collect();
    let token = match (rest.next(), page.last()) {
        (Some(_), Some(last)) => name(last).to_owned(),
        _ => String::new(),
    };
    (page, token)
}

/// Labels of an object, at most.
const MAX_LABELS: usize = 64;
/// The longest key or value of a label, bytes.
const MAX_LABEL: usize = 253;

/// Checks labels: how many, how long, and that they can be printed.
pub(super) fn check_labels(field: &str, labels: &HashMap<String, String>) -> Result<(), Status> {
    if labels.len() > MAX_LABELS {
        return Err(invalid_field(field, format!("{} are more than {MAX_LABELS}", labels.len())).status());
    }
    for (key, value) in labels {
        let printable = !key.chars().chain(value.chars()).any(char::is_control);
        if key.is_empty() || key.len() > MAX_LABEL || value.len() > MAX_LABEL || !printable {
            let why =
                format!("{key:?} is no label: 1 to {MAX_LABEL} printable bytes, and a value as long at most");
            return Err(invalid_field(field, why).status());
        }
    }
    Ok(())
}

/// INVALID_ARGUMENT that names every wrong field, with its description; Ok when there is none.
pub(super) fn invalid_fields(wrong: Vec<(String, String)>) -> Result<(), Status> {
    if wrong.is_empty() {
        return Ok(());
    }
    let lines: Vec<_> = wrong.iter().map(|(field, why)| format!("{field}: {why}")).collect();
    let error = ApiError::new(Code::InvalidArgument, "INVALID_ARGUMENT", lines.join("; "));
    Err(wrong.into_iter().fold(error, |error, (field, why)| error.field(field, why)).status())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proto::v1::CreateMigrationRequest;

    use super::*;

    proptest! {
        #[test]
        fn pages_show_everything_once(names in proptest::collection::btree_set("[a-z]{1,4}", 0..40), size in 1usize..7) {
            let all: Vec<String> = names.into_iter().collect();
            let mut seen = Vec::new();
            let mut token = String::new();
            loop {
                let (items, next) = page(all.clone(), size, &token, |name| name);
                prop_assert!(items.len() <= size);
                seen.extend(items);
                if next.is_empty() {
                    break;
                }
                token = next;
            }
            prop_assert_eq!(seen, all);
        }
    }

    #[test]
    fn wrong_fields_and_labels_are_told_together() {
        assert!(invalid_fields(Vec::new()).is_ok());
        let wrong = vec![("a.b".to_owned(), "3 is odd".to_owned()), ("c".to_owned(), "is empty".to_owned())];
        let status = invalid_fields(wrong).unwrap_err();
        assert_eq!(status.message(), "a.b: 3 is odd; c: is empty");
        assert_eq!(proto::error::ErrorDetails::of(&status).fields.len(), 2);
        let labels = |key: &str, value: &str| HashMap::from([(key.to_owned(), value.to_owned())]);
        assert!(check_labels("labels", &labels("team", "shop")).is_ok());
        assert!(check_labels("labels", &labels("", "x")).is_err());
        assert!(check_labels("labels", &labels("a\n", "x")).is_err());
        assert!(check_labels("labels", &labels("a", &"x".repeat(254))).is_err());
        let many = (0..65).map(|n| (n.to_string(), String::new())).collect();
        assert!(check_labels("labels", &many).is_err());
    }

    /// Each map has a hash of its own, so the same labels are encoded in another order nearly every time.
    #[test]
    fn a_repeated_request_is_known_whatever_the_order_of_its_labels() {
        let request = |extra: &str| CreateMigrationRequest {
            labels: (0..16).map(|n| (n.to_string(), extra.to_owned())).collect(),
            ..CreateMigrationRequest::default()
        };
        let known = Request { request: request("x").encode_to_vec(), ..Request::default() };
        let orders: std::collections::BTreeSet<Vec<u8>> =
            (0..20).map(|_| request("x").encode_to_vec()).collect();
        assert!(orders.len() > 1);
        for encoded in &orders {
            same_request::<CreateMigrationRequest>(&known, encoded).unwrap();
        }
        same_request::<CreateMigrationRequest>(&known, &request("y").encode_to_vec()).unwrap_err();
    }

    #[test]
    fn page_requests_are_checked() {
        assert_eq!(page_size(0).unwrap(), PAGE);
        assert_eq!(page_size(i32::MAX).unwrap(), MAX_PAGE);
        assert!(page_size(-1).is_err());
        assert!(page_start("no token!").is_err());
    }
}
