"""The closed registry of codes: what a request, a job or a dataset can fail with, and what to do about it."""

import msgspec


class Problem(msgspec.Struct, frozen=True):
    """`status` is the HTTP status, None for codes that only jobs and datasets fail with; `advice` says what to do."""

    code: str
    status: int | None
    title: str
    advice: str


_ALL = (
    Problem("malformed_body", 400, "The body cannot be read", "Send one JSON document in UTF-8."),
    Problem("unauthorized", 401, "No valid API key", "Send 'Authorization: Bearer fusion_live_...' with a live key."),
    Problem(
        "spend_limit_reached", 402, "The account's spend limit is reached", "Raise it with PATCH /account, or wait."
    ),
    Problem("operator_unauthorized", 401, "No valid operator token", "Send 'Authorization: Bearer fusion_ops_...'."),
    Problem("forbidden_role", 403, "The token's role may not do this", "Use an operator token with the role named."),
    Problem("forbidden_scope", 403, "The API key lacks a scope", "Use a key with the scope that the answer names."),
    Problem("not_found", 404, "No such object", "Check the id; other accounts' objects look the same as absent ones."),
    Problem("result_not_ready", 404, "The result does not exist yet", "Wait until the job is completed."),
    Problem("method_not_allowed", 405, "The method is not allowed here", "See the OpenAPI document."),
    Problem("request_timeout", 408, "The request came too slowly", "Send it again, over a better line."),
    Problem("idempotency_conflict", 409, "The idempotency key was used", "Choose a new key for a new request."),
    Problem("dataset_not_ready", 409, "The dataset is not ready", "Wait until GET /datasets/{id} says ready."),
    Problem("upload_missing", 409, "The upload never came", "PUT the file to the presigned URL, then try again."),
    Problem("upload_consumed", 409, "The upload is part of a dataset", "Presign a new upload for a new dataset."),
    Problem("in_use", 409, "A job still uses it", "Wait for the job, or cancel it; then try again."),
    Problem("not_stopped", 409, "The job has not stopped", "Stop it first; a job that has ended stays as it is."),
    Problem(
        "upload_incomplete", 409, "Parts of the upload are missing", "Send the missing parts, then complete it again."
    ),
    Problem(
        "quota_exceeded", 409, "The account stores too much", "Delete datasets, or abort uploads that will not come."
    ),
    Problem("too_many_webhooks", 409, "The account has too many webhooks", "Delete one that you no longer need."),
    Problem("too_many_keys", 409, "The account has too many API keys", "Revoke one that you no longer need."),
    Problem("webhook_disabled", 409, "The webhook is disabled", "Enable it with PATCH /webhooks/{id} first."),
    Problem("lease_alive", 409, "The job's lease has not expired", "Wait until it has, or send force."),
    Problem("webhooks_off", 409, "Webhooks are not set up here", "Ask the operator to set FUSION_WEBHOOK_KEY."),
    Problem("history_gone", 410, "The job's events are no longer kept", "GET /jobs/{id} still shows how it ended."),
    Problem("payload_too_large", 413, "The body is too large", "Data goes to presigned URLs, not through the API."),
    Problem("headers_too_large", 431, "The request's head is too large", "Send fewer or shorter headers."),
    Problem("rate_limited", 429, "Too many requests", "Wait as long as Retry-After says."),
    Problem("validation_failed", 422, "The request does not fit its schema", "Mend every field in 'errors'."),
    Problem("tokenizer_unreadable", 422, "The tokens cannot be counted here", "Estimate from the dataset's bytes."),
    Problem("unsupported_architecture", 422, "This architecture cannot be grown", "Choose one that the answer names."),
    Problem("no_fitting_pool", 422, "No machine has what the job asks for", "Ask for what the answer names."),
    Problem("internal", 500, "Something broke on our side", "Try again; quote the request id if it lasts."),
    Problem("not_ready", 503, "The service is not ready", "Try again in a few seconds."),
    Problem("invalid_row", None, "A row of the dataset is wrong", "Mend the lines named and upload again."),
    Problem("invalid_encoding", None, "The file is not clean UTF-8", "Save the file as UTF-8 and upload again."),
    Problem("dataset_empty", None, "The dataset has too few rows", "Upload at least two rows."),
    Problem("dataset_too_short", None, "The data is shorter than a sequence", "Add text, or lower seq_len."),
    Problem("empty_completion", None, "A row has an empty completion", "Remove the row or write the answer."),
    Problem("chat_without_assistant", None, "A conversation has no assistant turn", "Add the answer to be learned."),
    Problem("no_chat_template", None, "The model has no chat template", "Choose another base, or send plain text."),
    Problem("chat_not_supported", None, "The model's chat template refuses a row", "Mend the conversations named."),
    Problem(
        "tokenizer_mismatch", None, "The tokenizer has ids beyond the model", "Import the base with its tokenizer."
    ),
    Problem("dataset_too_large", None, "The dataset is over a limit", "Split it; docs/datasets.md has the limits."),
    Problem("file_damaged", None, "A file of the dataset cannot be read", "Make the file again and upload it again."),
    Problem("upload_truncated", None, "The upload looks cut off", "Upload the whole file again."),
    Problem("upload_changed", None, "The upload changed after registration", "Upload and register it again."),
    Problem("unsupported_format", None, "The file's format is not known", "Use JSONL, text, CSV or Parquet."),
    Problem("base_model_incomplete", None, "Files of the base model are missing", "Import the whole folder again."),
    Problem("base_model_corrupt", None, "Files of the base model are damaged", "Import an intact copy again."),
    Problem("growth_not_preserving", None, "Growth changed the model's output", "Report it: nothing was trained."),
    Problem("nonfinite_loss", None, "The loss is not a finite number", "Lower lr, or look at the data."),
    Problem("out_of_memory", None, "One row does not fit into memory", "Lower seq_len or growth_factor."),
    Problem("retry_budget_spent", None, "The job crashed again and again", "See 'errors' for the last crash."),
    Problem(
        "disk_full", None, "The worker's disk is full", "Retried elsewhere; operators: enlarge the scratch volume."
    ),
    Problem("trainer_crashed", None, "The trainer died without an outcome", "It is retried from its last checkpoint."),
    Problem("trainer_stalled", None, "The trainer hung", "It was killed and is retried from its last checkpoint."),
    Problem("node_lost", None, "A machine of the group was lost", "The job goes on from its last checkpoint."),
    Problem("failed_by_operator", None, "The operator ended the job", "The message says why; ask the operator."),
    Problem(
        "gpu_fault", None, "The worker's GPU reported a fault", "It is retried elsewhere; operators: see its drain."
    ),
    Problem(
        "deadline_exceeded", None, "The job did not end in time", "Submit it again, or a smaller one; ask the operator."
    ),
    Problem("upload_failed", None, "The worker could not store what it made", "It is retried; see the message."),
    Problem("checkpoint_upload_failed", None, "A checkpoint could not be stored", "Training goes on; see the message."),
    Problem("cancelled", None, "The reading of the dataset was cancelled", "Upload the files again and register them."),
    Problem("storage_unavailable", None, "S3 did not answer", "It is retried until S3 does, from its last checkpoint."),
    Problem("inputs_unavailable", None, "The worker could not fetch its inputs", "It is retried; see the message."),
)
PROBLEMS: dict[str, Problem] = {problem.code: problem for problem in _ALL}
