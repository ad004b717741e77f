//! What an API server sends of one kind in, changes out: the pages of a list, and the lines of a
//! watch.
//!
//! Each object is taken out of its list or line as text and read alone, so one that cannot be read
//! takes no other with it. It is remembered as such until it changes or is gone; what was known of
//! it before stays. No I/O.

#[cfg(test)]
mod tests;

use super::events::ObjectEvent;
use super::feed::Feed;
use crate::model::{Change, Warning};
use crate::source::objects::{Metadata, Object, Unreadable, read};
use kube::core::Status;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::mem::take;

/// How many objects of a kind are named that cannot be read.
const NAMED: usize = 10;
/// The reason of the event on an object that cannot be read.
const REASON: &str = "Unreadable";

/// What a line of a watch says.
#[derive(Debug)]
pub(super) enum Said {
    /// The list at the beginning is complete.
    Listed(Vec<Change>),
    /// Something, which may change nothing.
    Something(Option<Change>),
}

/// Why a line or a page makes no sense.
#[derive(Debug)]
pub(super) enum Nonsense {
    /// It is no JSON of Kubernetes.
    Json(serde_json::Error),
    /// The server says that something is wrong.
    Status(Box<Status>),
    /// An object is deleted while the list that may have it is not complete.
    DeletedInList,
}

#[derive(Deserialize)]
struct Page<'a> {
    #[serde(default)]
    metadata: Option<PageMetadata>,
    #[serde(borrow, default)]
    items: Option<Vec<&'a RawValue>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct PageMetadata {
    resource_version: Option<String>,
    #[serde(rename = "continue")]
    continue_: Option<String>,
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    object: &'a RawValue,
}

/// The objects of a kind that cannot be read, by namespace and name.
type AllUnreadable = BTreeMap<(String, String), Box<Unreadable>>;

/// Reads what is sent of one kind.
pub(super) struct Reader<F: Feed> {
    /// Turns objects into changes.
    pub(super) feed: F,
    /// Up to where the objects are known; `None` before a list.
    pub(super) version: Option<String>,
    /// Whether the first objects of a watch, or the pages of a list, are being read.
    listing: bool,
    unreadable: AllUnreadable,
    /// Those of the list that is being read.
    unreadable_listed: AllUnreadable,
    events: Vec<ObjectEvent>,
}

impl<F: Feed> Reader<F> {
    /// Nothing has been read.
    pub(super) fn new(feed: F) -> Self {
        Self {
            feed,
            version: None,
            listing: false,
            unreadable: BTreeMap::new(),
            unreadable_listed: BTreeMap::new(),
            events: Vec::new(),
        }
    }

    /// A list begins; what an unfinished one brought is forgotten.
    pub(super) fn begin_list(&mut self) {
        self.listing = true;
        self.unreadable_listed.clear();
        self.feed.begin_list();
    }

    /// Whether a list is being read.
    pub(super) fn is_listing(&self) -> bool {
        self.listing
    }

    /// The list is complete.
    pub(super) fn end_list(&mut self) -> Vec<Change> {
        self.listing = false;
        self.unreadable = take(&mut self.unreadable_listed);
        self.feed.end_list()
    }

    /// Reads a page of a list. Gives the token of the next page, if there is one.
    pub(super) fn page(&mut self, page: &[u8]) -> Result<Option<String>, Nonsense> {
        let text = String::from_utf8_lossy(page);
        let page: Page<'_> = serde_json::from_str(&text).map_err(Nonsense::Json)?;
        for object in page.items.unwrap_or_default() {
            self.listed(object.get());
        }
        let metadata = page.metadata.unwrap_or_default();
        let next = metadata.continue_.filter(|token| !token.is_empty());
        if next.is_none() {
            self.version = metadata.resource_version.filter(|version| !version.is_empty());
        }
        Ok(next)
    }

    /// Reads a line of a watch.
    pub(super) fn line(&mut self, line: &[u8]) -> Result<Said, Nonsense> {
        let text = String::from_utf8_lossy(line);
        let Line { kind, object } = serde_json::from_str(&text).map_err(|error| {
            // Servers and what is in front of them answer with a bare Status, too.
            let status = serde_json::from_str::<Value>(&text).ok();
            let status = status.filter(|value| value["kind"] == "Status");
            status.map_or(Nonsense::Json(error), |value| Nonsense::Status(status_of(&value)))
        })?;
        let object = object.get();
        match &*kind {
            "ADDED" | "MODIFIED" if self.listing => self.listed(object),
            "ADDED" | "MODIFIED" => return Ok(Said::Something(self.applied(object))),
            "DELETED" if self.listing => return Err(Nonsense::DeletedInList),
            "DELETED" => return Ok(Said::Something(self.deleted(object))),
            "BOOKMARK" => return Ok(self.bookmark(object)),
            "ERROR" => {
                let status = serde_json::from_str(object).unwrap_or_default();
                return Err(Nonsense::Status(status_of(&status)));
            }
            _ => {}
        }
        Ok(Said::Something(None))
    }

    fn listed(&mut self, json: &str) {
        match read::<F::Object>(json) {
            Ok(object) => self.feed.listed(&object),
            Err(unreadable) => {
                if !unreadable.metadata.name().is_empty() {
                    self.feed.kept(&unreadable.metadata);
                }
                self.tell(&unreadable);
                self.unreadable_listed.insert(key(&unreadable.metadata), unreadable);
            }
        }
    }

    fn applied(&mut self, json: &str) -> Option<Change> {
        match read::<F::Object>(json) {
            Ok(object) => {
                self.unreadable.remove(&key(object.metadata()));
                self.advance(object.metadata());
                self.feed.applied(&object)
            }
            Err(unreadable) => {
                self.advance(&unreadable.metadata);
                self.tell(&unreadable);
                self.unreadable.insert(key(&unreadable.metadata), unreadable);
                None
            }
        }
    }

    /// Whose object is gone need not be readable.
    fn deleted(&mut self, json: &str) -> Option<Change> {
        let metadata = Metadata::identity(json);
        self.advance(&metadata);
        self.unreadable.remove(&key(&metadata));
        (!metadata.name().is_empty()).then(|| self.feed.deleted(&metadata))
    }

    fn bookmark(&mut self, json: &str) -> Said {
        let value = serde_json::from_str::<Value>(json).unwrap_or_default();
        let metadata = &value["metadata"];
        let is_end = !metadata["annotations"]["k8s.io/initial-events-end"].is_null();
        let listed = (self.listing && is_end).then(|| self.end_list());
        if !self.listing {
            self.advance(&Metadata::identity(json));
        }
        listed.map_or(Said::Something(None), Said::Listed)
    }

    /// The watch has come as far as the object.
    fn advance(&mut self, metadata: &Metadata) {
        if let Some(version) = metadata.resource_version.as_ref().filter(|v| !v.is_empty()) {
            self.version = Some(version.clone());
        }
    }

    /// Notes an event for the owner of the object, if this version of it is new.
    fn tell(&mut self, unreadable: &Unreadable) {
        let (key, metadata) = (key(&unreadable.metadata), &unreadable.metadata);
        let before = self.unreadable.get(&key);
        let is_known =
            before.is_some_and(|b| b.metadata.resource_version == metadata.resource_version);
        if is_known || metadata.name().is_empty() || self.events.len() >= NAMED {
            return;
        }
        self.events.push(ObjectEvent {
            api_version: F::Object::API_VERSION,
            kind: F::Object::KIND,
            namespace: metadata.namespace.clone(),
            name: metadata.name().to_owned(),
            uid: metadata.uid.clone(),
            version: metadata.resource_version.clone(),
            reason: REASON,
            message: format!("{}; {STAYS}", unreadable.reason),
            of_node: false,
        });
    }

    /// The events that owners of objects should see.
    pub(super) fn take_events(&mut self) -> Vec<ObjectEvent> {
        take(&mut self.events)
    }

    /// What is wrong with the objects as they are now.
    pub(super) fn warnings(&self) -> Vec<Warning> {
        let named = self.unreadable.values().take(NAMED).map(|unreadable| Warning {
            subject: unreadable.subject::<F::Object>(),
            message: format!("it cannot be read: {}; {STAYS}", unreadable.reason),
        });
        let mut warnings: Vec<_> = named.collect();
        if let more @ 1.. = self.unreadable.len().saturating_sub(NAMED) {
            warnings.push(Warning {
                subject: F::RESOURCE.to_owned(),
                message: format!("{more} more objects cannot be read"),
            });
        }
        warnings
    }
}

const STAYS: &str = "what was known of it stays until it changes";

fn key(metadata: &Metadata) -> (String, String) {
    (metadata.namespace.clone().unwrap_or_default(), metadata.name().to_owned())
}

fn status_of(value: &Value) -> Box<Status> {
    let text = |field: &str| value[field].as_str().unwrap_or_default();
    let code = value["code"].as_u64().and_then(|code| u16::try_from(code).ok());
    Status::failure(text("message"), text("reason")).with_code(code.unwrap_or(0)).boxed()
}
