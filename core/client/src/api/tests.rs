//! The contract's field names, as scripts read them.

use super::*;

#[test]
fn every_word_on_the_screen_is_the_word_on_the_wire() {
    fn check<T: serde::Serialize + Copy>(all: &[T], word: fn(T) -> &'static str) {
        for &value in all {
            assert_eq!(serde_json::to_value(value).unwrap(), word(value));
        }
    }
    check(JobState::ALL, JobState::as_str);
    check(Stage::ALL, Stage::as_str);
    check(ModelState::ALL, ModelState::as_str);
    check(ServedState::ALL, ServedState::as_str);
    check(PluginState::ALL, PluginState::as_str);
    check(DeviceKind::ALL, DeviceKind::as_str);
    check(WorkerRole::ALL, WorkerRole::as_str);
    check(LogLevel::ALL, LogLevel::as_str);
    check(LogSource::ALL, LogSource::as_str);
    check(RequestPhase::ALL, RequestPhase::as_str);
    check(ChatRole::ALL, ChatRole::as_str);
}

/// Fails when a field that the command-line contract names is renamed or left out.
#[test]
fn documents_carry_the_fields_the_command_line_promises() {
    fn keys(schema: utoipa::openapi::RefOr<utoipa::openapi::Schema>) -> Vec<String> {
        let utoipa::openapi::RefOr::T(utoipa::openapi::Schema::Object(object)) = schema else {
            panic!("not an object schema")
        };
        object.properties.keys().cloned().collect()
    }
    fn check<T: utoipa::PartialSchema>(expected: &str) {
        let keys = keys(T::schema());
        for name in expected.split_whitespace() {
            assert!(keys.iter().any(|key| key == name), "{name} is missing from {keys:?}");
        }
    }
    check::<Status>("version home server jobs workers");
    check::<Server>("url");
    check::<JobCounts>("queued running failed");
    check::<InspectReport>("format architecture parameters bytes tensors");
    check::<InspectTensor>("name dtype shape");
    check::<PlanReport>("targets");
    check::<PlanTarget>("name backend format scheme supported reason steps bytes peak_memory_bytes seconds");
    check::<EvalReport>("perplexity reference_perplexity kl_mean kl_p99 top1 tokens");
    check::<EvalReport>("kl_median kl_max top5 positions tensors");
    check::<EvalTensor>("name dtype elements rmse relative largest");
    check::<BenchReport>("artifacts");
    check::<BenchArtifact>(
        "path backend scheme bytes threads load_seconds prefill_tps decode_tps peak_memory_bytes prefill_speedup decode_speedup roofline",
    );
    check::<BenchRoofline>("read_bytes_limit float_operations_limit integer_operations_limit prefill decode");
    check::<BenchOperation>("name seconds bytes operations reached");
    check::<Models>("models");
    check::<ModelEntry>("name state artifacts");
    check::<Artifact>("id path backend format scheme bytes bits_per_weight measurements");
    check::<Measurements>("perplexity kl_mean kl_p99 top1 prefill_tps decode_tps peak_memory_bytes");
    check::<Jobs>("jobs");
    check::<Job>("id model target state stage progress seconds error");
    check::<ErrorReport>("code message help");
    check::<Plugins>("plugins");
    check::<Plugin>("id version abi path state runtime_version devices formats schemes problems");
    check::<Problem>("message help");
}

#[test]
fn an_event_is_a_type_and_its_data() {
    let line = LogLine {
        sequence: 7,
        time: 1.5,
        job: Some("3".into()),
        level: LogLevel::Info,
        source: LogSource::Daemon,
        message: "forged".into(),
    };
    let json = serde_json::to_value(Event::Log(line)).unwrap();
    assert_eq!(json["type"], "log");
    assert_eq!(json["data"]["message"], "forged");
    assert_eq!(serde_json::to_string(&Event::Resync).unwrap(), r#"{"type":"resync"}"#);
}

#[test]
fn an_optional_field_may_be_missing() {
    let report: ErrorReport = serde_json::from_str(r#"{"code":"x","message":"y"}"#).unwrap();
    assert_eq!((report.help.as_deref(), report.subject.as_deref()), (None, None));
}
