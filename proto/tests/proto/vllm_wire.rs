//! Our messages are vLLM's, by its own crate `vllm-proto`: same fields, same numbers, same types.

use std::fmt::Debug;

use prost::Message;
use prost_reflect::{Cardinality, DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey};
use prost_reflect::{MessageDescriptor, Value};

use quire_proto::vllm as ours;
use vllm_proto as theirs;

/// Depth at which recursive messages (`google.protobuf.Struct`) stop.
const MAX_DEPTH: u32 = 6;

/// A message with every field set to something that is not its default. Of each oneof the `variant`-th
/// field (modulo their number) is set.
fn full(descriptor: &MessageDescriptor, variant: usize, depth: u32) -> DynamicMessage {
    let mut message = DynamicMessage::new(descriptor.clone());
    for field in descriptor.fields() {
        let skipped = field.containing_oneof().is_some_and(|oneof| {
            let fields: Vec<_> = oneof.fields().collect();
            fields[variant % fields.len()] != field
        });
        let too_deep = depth >= MAX_DEPTH && matches!(field.kind(), Kind::Message(_));
        if !skipped && !too_deep {
            message.set_field(&field, value(&field, variant, depth));
        }
    }
    message
}

fn value(field: &FieldDescriptor, variant: usize, depth: u32) -> Value {
    if field.is_map() {
        let Kind::Message(entry) = field.kind() else { unreachable!("maps have entry messages") };
        let key = match scalar(&entry.map_entry_key_field(), variant, depth) {
            Value::U32(key) => MapKey::U32(key),
            Value::String(key) => MapKey::String(key),
            other => panic!("a map key of a kind this test does not know: {other:?}"),
        };
        let value = scalar(&entry.map_entry_value_field(), variant, depth);
        return Value::Map([(key, value)].into());
    }
    let one = scalar(field, variant, depth);
    if field.cardinality() == Cardinality::Repeated { Value::List(vec![one.clone(), one]) } else { one }
}

/// Different for each field, so that two fields with swapped numbers show.
fn scalar(field: &FieldDescriptor, variant: usize, depth: u32) -> Value {
    let number = field.number();
    match field.kind() {
        Kind::Bool => Value::Bool(true),
        Kind::Uint32 => Value::U32(1000 + number),
        Kind::Uint64 => Value::U64((1 << 40) + u64::from(number)),
        Kind::Int32 => Value::I32(-1000 - number as i32),
        Kind::Int64 => Value::I64(-(1 << 40) - i64::from(number)),
        Kind::Float => Value::F32(0.5 + number as f32),
        Kind::Double => Value::F64(0.25 + f64::from(number)),
        Kind::String => Value::String(format!("{} {number}", field.name())),
        Kind::Bytes => Value::Bytes(vec![number as u8, 0, 255].into()),
        Kind::Enum(kind) => Value::EnumNumber(kind.values().last().unwrap().number()),
        Kind::Message(kind) => Value::Message(full(&kind, variant, depth + 1)),
        other => panic!("{}: a kind this test does not know: {other:?}", field.full_name()),
    }
}

/// Both sides read the same bytes as the same fields, and write them again without loss.
fn compare<Ours, Theirs>(name: &str, pool: &DescriptorPool)
where
    Ours: Message + Default + Debug,
    Theirs: Message + Default + Debug,
{
    let descriptor = pool.get_message_by_name(name).unwrap_or_else(|| panic!("{name} is not in our schema"));
    assert_eq!(format!("{:?}", Ours::default()), format!("{:?}", Theirs::default()), "{name}: fields differ");
    // No oneof has more alternatives than this.
    for variant in 0..6 {
        let sent = full(&descriptor, variant, 0);
        let bytes = sent.encode_to_vec();
        let ours = Ours::decode(&bytes[..]).unwrap_or_else(|e| panic!("{name}, variant {variant}: {e}"));
        let theirs = Theirs::decode(&bytes[..]).unwrap_or_else(|e| panic!("{name}, variant {variant}: {e}"));
        assert_eq!(format!("{ours:?}"), format!("{theirs:?}"), "{name}, variant {variant}");
        assert_eq!(ours.encode_to_vec(), theirs.encode_to_vec(), "{name}, variant {variant}");
        let back = DynamicMessage::decode(descriptor.clone(), &ours.encode_to_vec()[..]).unwrap();
        assert_eq!(back, sent, "{name}, variant {variant}: something was lost");
    }
}

macro_rules! compare_all {
    ($($name:literal: $($path:ident)::+),+ $(,)?) => {{
        let pool = DescriptorPool::decode(quire_proto::FILE_DESCRIPTOR_SET).unwrap();
        $(compare::<ours::$($path)::+, theirs::$($path)::+>($name, &pool);)+
        [$($name),+]
    }};
}

#[test]
fn messages_are_those_of_vllm() {
    let compared = compare_all! {
        "vllm.GenerateRequest": GenerateRequest,
        "vllm.EngineReasoningGate": EngineReasoningGate,
        "vllm.KVHintsEnvelope": KvHintsEnvelope,
        "vllm.KVHintAction": KvHintAction,
        "vllm.RandomSampling": RandomSampling,
        "vllm.DecodingParameters": DecodingParameters,
        "vllm.DecodingParameters.StringChoices": decoding_parameters::StringChoices,
        "vllm.StoppingCriteria": StoppingCriteria,
        "vllm.ResponseOptions": ResponseOptions,
        "vllm.KVCacheParameters": KvCacheParameters,
        "vllm.CandidateTokens": CandidateTokens,
        "vllm.GenerateResponse": GenerateResponse,
        "vllm.SequenceOutput": SequenceOutput,
        "vllm.PromptInfo": PromptInfo,
        "vllm.FinishInfo": FinishInfo,
        "vllm.CandidateTokenInfo": CandidateTokenInfo,
        "vllm.CandidateTokenInfo.TokenInfo": candidate_token_info::TokenInfo,
        "vllm.TokenIds": TokenIds,
        "vllm.MediaItem": MediaItem,
        "vllm.PreprocessedMediaFeatures": PreprocessedMediaFeatures,
        "vllm.GetServerInfoRequest": GetServerInfoRequest,
        "vllm.ServerInfo": ServerInfo,
        "vllm.RlCapabilities": RlCapabilities,
        "vllm.ParallelismInfo": ParallelismInfo,
        "vllm.GetModelInfoRequest": GetModelInfoRequest,
        "vllm.ModelInfo": ModelInfo,
        "vllm.ShutdownRequest": ShutdownRequest,
        "vllm.ShutdownResponse": ShutdownResponse,
        "vllm.AbortRequest": AbortRequest,
        "vllm.AbortResponse": AbortResponse,
        "vllm.LoraAdapter": LoraAdapter,
        "vllm.LoadLoraRequest": LoadLoraRequest,
        "vllm.LoadLoraResponse": LoadLoraResponse,
        "vllm.UnloadLoraRequest": UnloadLoraRequest,
        "vllm.UnloadLoraResponse": UnloadLoraResponse,
        "vllm.ListLorasRequest": ListLorasRequest,
        "vllm.ListLorasResponse": ListLorasResponse,
        "vllm.PauseGenerationRequest": PauseGenerationRequest,
        "vllm.PauseGenerationResponse": PauseGenerationResponse,
        "vllm.ResumeGenerationRequest": ResumeGenerationRequest,
        "vllm.ResumeGenerationResponse": ResumeGenerationResponse,
        "vllm.IsPausedRequest": IsPausedRequest,
        "vllm.IsPausedResponse": IsPausedResponse,
        "vllm.SleepRequest": SleepRequest,
        "vllm.SleepResponse": SleepResponse,
        "vllm.WakeUpRequest": WakeUpRequest,
        "vllm.WakeUpResponse": WakeUpResponse,
        "vllm.IsSleepingRequest": IsSleepingRequest,
        "vllm.IsSleepingResponse": IsSleepingResponse,
        "vllm.InitWeightTransferEngineRequest": InitWeightTransferEngineRequest,
        "vllm.InitWeightTransferEngineResponse": InitWeightTransferEngineResponse,
        "vllm.StartWeightUpdateRequest": StartWeightUpdateRequest,
        "vllm.StartWeightUpdateResponse": StartWeightUpdateResponse,
        "vllm.StartDraftWeightUpdateRequest": StartDraftWeightUpdateRequest,
        "vllm.StartDraftWeightUpdateResponse": StartDraftWeightUpdateResponse,
        "vllm.UpdateWeightsRequest": UpdateWeightsRequest,
        "vllm.UpdateWeightsResponse": UpdateWeightsResponse,
        "vllm.FinishWeightUpdateRequest": FinishWeightUpdateRequest,
        "vllm.FinishWeightUpdateResponse": FinishWeightUpdateResponse,
        "vllm.UpdateWeightVersionRequest": UpdateWeightVersionRequest,
        "vllm.UpdateWeightVersionResponse": UpdateWeightVersionResponse,
        "vllm.GetWeightVersionRequest": GetWeightVersionRequest,
        "vllm.GetWeightVersionResponse": GetWeightVersionResponse,
        "vllm.GetKvEventSourcesRequest": GetKvEventSourcesRequest,
        "vllm.GetKvEventSourcesResponse": GetKvEventSourcesResponse,
        "vllm.KvEventSource": KvEventSource,
    };
    // The list above is all there is.
    let pool = DescriptorPool::decode(quire_proto::FILE_DESCRIPTOR_SET).unwrap();
    let forgotten: Vec<_> = pool
        .all_messages()
        .filter(|message| message.package_name() == "vllm" && !message.is_map_entry())
        .filter(|message| !compared.contains(&message.full_name()))
        .collect();
    assert!(forgotten.is_empty(), "not compared: {forgotten:?}");
}

#[test]
fn methods_are_those_of_vllm() {
    let pool = DescriptorPool::decode(quire_proto::FILE_DESCRIPTOR_SET).unwrap();
    let mut methods = Vec::new();
    for service in pool.services().filter(|service| service.package_name() == "vllm") {
        for m in service.methods() {
            let stream = if m.is_server_streaming() { "stream " } else { "" };
            methods.push(format!("{} {} {stream}{}", m.full_name(), m.input().name(), m.output().name()));
        }
    }
    assert_eq!(methods.len(), 2 + 21);
    assert!(methods.contains(&"vllm.Inference.Generate GenerateRequest GenerateResponse".into()));
    assert!(
        methods.contains(&"vllm.Inference.GenerateStream GenerateRequest stream GenerateResponse".into())
    );
    for method in methods.iter().filter(|m| m.starts_with("vllm.Control.")) {
        let (name, types) = method.split_once(' ').unwrap();
        let name = name.strip_prefix("vllm.Control.").unwrap();
        let response = match name {
            "GetServerInfo" => "ServerInfo".into(),
            "GetModelInfo" => "ModelInfo".into(),
            _ => format!("{name}Response"),
        };
        assert_eq!(types, format!("{name}Request {response}"));
    }
}
