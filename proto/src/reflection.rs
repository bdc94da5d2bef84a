//! Server reflection, in the version of today and in the one that many clients still ask.

use tonic_reflection::server::{Builder, Error, v1, v1alpha};

/// The two services of server reflection, for what a daemon serves: `served` are the full names of its services.
/// Health and reflection itself are added.
///
/// # Errors
/// When the descriptors cannot be decoded.
pub fn services(
    served: &[&str],
) -> Result<
    (
        v1::ServerReflectionServer<impl v1::ServerReflection>,
        v1alpha::ServerReflectionServer<impl v1alpha::ServerReflection>,
    ),
    Error,
> {
    let own = ["grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"];
    let names = served.iter().chain(&own).chain(&["grpc.reflection.v1alpha.ServerReflection"]);
    let builder = || {
        let builder = Builder::configure()
            .register_encoded_file_descriptor_set(crate::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
        // The descriptors tell of services of the other daemon, too.
        names.clone().fold(builder, |builder, name| builder.with_service_name(*name))
    };
    Ok((builder().build_v1()?, builder().build_v1alpha()?))
}
