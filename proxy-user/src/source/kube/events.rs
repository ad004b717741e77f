//! Events: what the owner of a Service should see, in `kubectl describe service`.

use super::connect;
use crate::model::Notice;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Error, ResourceExt as _};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::Path;
use tokio::sync::mpsc::Receiver;

const COMPONENT: &str = "shunt";

/// Makes a Warning event of each of `notices`, until their sender is gone. An event that the API
/// server does not take is logged: it says nothing that the status does not.
pub(in crate::source) async fn publish(
    kubeconfig: Option<&Path>,
    node_name: &str,
    mut notices: Receiver<Notice>,
) {
    while let Some(notice) = notices.recv().await {
        let subject = format!("Service {}", notice.service);
        let error: Box<dyn std::error::Error> = match connect(kubeconfig).await {
            Ok(connection) => match create(connection.client, node_name, notice).await {
                Ok(()) => continue,
                Err(error) => error.into(),
            },
            Err(error) => error.into(),
        };
        tracing::warn!(error = &*error, subject, "no event could be made");
    }
}

async fn create(client: kube::Client, node_name: &str, notice: Notice) -> Result<(), Error> {
    let (namespace, name) = (notice.service.namespace.to_string(), notice.service.name.to_string());
    // `kubectl describe` finds events by the object's UID.
    let services: Api<Service> = Api::namespaced(client.clone(), &namespace);
    let uid = services.get_opt(&name).await?.and_then(|service| service.uid());
    let now = Timestamp::now();
    let (number, message) = if notice.of_node {
        (now.as_nanosecond(), format!("node {node_name}: {}", notice.message))
    } else {
        // Every node makes the same Event, and the first one is taken.
        let mut digest = DefaultHasher::new();
        (&uid, notice.reason, &notice.message).hash(&mut digest);
        (digest.finish().into(), notice.message)
    };
    let event = Event {
        metadata: ObjectMeta {
            name: Some(format!("{name}.{number:x}")),
            namespace: Some(namespace.clone()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Service".into()),
            namespace: Some(namespace.clone()),
            name: Some(name),
            uid,
            ..ObjectReference::default()
        },
        type_: Some("Warning".into()),
        reason: Some(notice.reason.into()),
        message: Some(message),
        source: Some(EventSource {
            component: Some(COMPONENT.into()),
            host: Some(node_name.into()),
        }),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        count: Some(1),
        ..Event::default()
    };
    let events: Api<Event> = Api::namespaced(client, &namespace);
    match events.create(&PostParams::default(), &event).await {
        Err(Error::Api(status)) if status.is_already_exists() => Ok(()),
        result => result.map(drop),
    }
}
