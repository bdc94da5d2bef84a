//! Migration policies: apply, delete.

use proto::error::{ApiError, invalid_field, not_found};
use proto::identity::{Identity, check_name};
use proto::v1::{
    ApplyMigrationPolicyRequest, ApplyMigrationPolicyResponse, DeleteMigrationPolicyRequest,
    DeleteMigrationPolicyResponse, MigrationPolicy,
};
use tonic::{Code, Status};

use super::Api;
use super::requests::{check_labels, invalid_fields};
use crate::policy::wrong_limits;
use crate::store::{DeleteError, InUse};

impl Api {
    /// A policy.
    pub(super) fn policy(&self, name: &str) -> Result<MigrationPolicy, Status> {
        self.core.store.policy(name)?.ok_or_else(|| not_found("policy", name).status())
    }

    pub(super) fn apply_policy(
        &self,
        who: &Identity,
        request: ApplyMigrationPolicyRequest,
    ) -> Result<ApplyMigrationPolicyResponse, Status> {
        check_name(&request.name).map_err(|e| invalid_field("name", e.to_string()))?;
        let spec = request.spec.ok_or_else(|| invalid_field("spec", "is missing"))?;
        check_labels("spec.match_labels", &spec.match_labels)?;
        check_labels("labels", &request.labels)?;
        let limits = spec.limits.unwrap_or_default();
        invalid_fields(wrong_limits("spec.limits", &limits))?;
        let wanted = MigrationPolicy {
            name: request.name,
            spec: Some(spec),
            labels: request.labels,
            updated_by: who.to_string(),
            ..MigrationPolicy::default()
        };
        let (policy, result) = self.core.store.apply_policy(wanted, request.validate_only)?;
        Ok(ApplyMigrationPolicyResponse { policy: Some(policy), result: result.into() })
    }

    pub(super) fn delete_policy(
        &self,
        request: &DeleteMigrationPolicyRequest,
    ) -> Result<DeleteMigrationPolicyResponse, Status> {
        let name = &request.name;
        match self.core.store.delete_policy(name, request.validate_only) {
            Ok(()) => Ok(DeleteMigrationPolicyResponse {}),
            Err(DeleteError::NotFound) => Err(not_found("policy", name).status()),
            Err(DeleteError::Store(error)) => Err(error.into()),
            Err(DeleteError::InUse(InUse { by })) => {
                let message = format!("policy {name} is named by {}", by.join(", "));
                let error = ApiError::new(Code::FailedPrecondition, "POLICY_IN_USE", message)
                    .with("policy", name)
                    .with("users", by.join(","));
                let error = by.into_iter().fold(error, |error, user| {
                    error.precondition(
                        "POLICY_IN_USE",
                        user,
                        "names it: wait until it has begun, or cancel it",
                    )
                });
                Err(error.status())
            }
        }
    }
}
