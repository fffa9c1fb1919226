//! The gRPC services as a client without our generated code meets them (reflection), and the order of
//! messages in a stream.

use std::collections::BTreeMap;

use prost::Message;
use prost_types::{DescriptorProto, FileDescriptorProto};
use quire_proto::vllm;
use tokio_stream::StreamExt;
use tonic_reflection::pb::{v1, v1alpha};

use crate::grpc;
use crate::server::Server;

/// Names of services, and the file that defines `symbol`, as the server tells them over reflection.
macro_rules! reflect {
    ($version:ident, $addr:expr, $symbol:expr) => {{
        use $version::server_reflection_client::ServerReflectionClient;
        use $version::server_reflection_request::MessageRequest;
        use $version::server_reflection_response::MessageResponse;
        let mut client = ServerReflectionClient::new(grpc::channel($addr).await);
        let ask = |message_request: MessageRequest| $version::ServerReflectionRequest {
            host: String::new(),
            message_request: Some(message_request),
        };
        let questions = vec![
            ask(MessageRequest::ListServices(String::new())),
            ask(MessageRequest::FileContainingSymbol($symbol.to_owned())),
        ];
        let answers = client.server_reflection_info(tokio_stream::iter(questions)).await.expect("answers");
        let mut answers = answers.into_inner();
        let mut next = async || answers.next().await.expect("an answer").expect("no error").message_response;
        let Some(MessageResponse::ListServicesResponse(list)) = next().await else { panic!("no list") };
        let services: Vec<String> = list.service.into_iter().map(|service| service.name).collect();
        let Some(MessageResponse::FileDescriptorResponse(files)) = next().await else { panic!("no file") };
        let decode = |bytes: &Vec<u8>| FileDescriptorProto::decode(&**bytes).expect("a descriptor");
        let files: Vec<FileDescriptorProto> = files.file_descriptor_proto.iter().map(decode).collect();
        (services, files)
    }};
}

#[tokio::test]
async fn reflection_tells_everything_a_client_needs() {
    let server = Server::shared(&[]);
    let newer = reflect!(v1, server.grpc, "vllm.Inference");
    let older = reflect!(v1alpha, server.grpc, "vllm.Inference");
    for (services, files) in [newer, older] {
        for name in ["vllm.Inference", "vllm.Control", "grpc.health.v1.Health"] {
            assert!(services.iter().any(|service| service == name), "{name} is not in {services:?}");
        }
        let messages: BTreeMap<String, DescriptorProto> = files
            .iter()
            .filter(|file| file.package() == "vllm")
            .flat_map(|file| file.message_type.clone())
            .map(|message| (message.name().to_owned(), message))
            .collect();
        // Field numbers of the published schema, as far as clients use them most.
        for (message, fields) in [
            (
                "GenerateRequest",
                "request_id=1 model=2 text=3 token_ids=4 temperature=5 sampling=6 decoding=7 stopping=8 response=9 \
                 kv=10 truncate_prompt_tokens=11 priority=12 session_id=13 media=14 lora_name=15 watermarking=16 \
                 kv_hints=17 engine_reasoning_gate=18",
            ),
            ("RandomSampling", "num_sequences=1 top_k=2 top_p=3 min_p=4 seed=5"),
            (
                "StoppingCriteria",
                "max_new_tokens=1 min_new_tokens=2 stop_token_ids=3 stop_strings=4 include_stop_strings=5 ignore_eos=6 \
                 thinking_token_budget=7",
            ),
            (
                "ResponseOptions",
                "prompt_token_ids=1 prompt_logprobs=2 prompt_candidates=3 output_text=4 output_token_ids=5 \
                 output_logprobs=6 output_candidates=7 skip_special_tokens=8",
            ),
            ("GenerateResponse", "prompt_info=1 outputs=2"),
            (
                "SequenceOutput",
                "index=1 text=2 num_tokens=3 token_ids=4 logprobs=5 ranks=6 candidate_tokens=7 finish_info=8 \
                 sampling_mask=10",
            ),
            ("PromptInfo", "num_prompt_tokens=1 token_ids=2 logprobs=3 ranks=4 candidate_tokens=5"),
            (
                "FinishInfo",
                "num_output_tokens=1 finish_reason=2 stop_token_id=3 eos_token_id=4 stop_string=5 kv_transfer_params=6 \
                 ec_transfer_params=8 num_cached_tokens=9",
            ),
        ] {
            let descriptor = messages.get(message).unwrap_or_else(|| panic!("{message} is not described"));
            let mut numbered: Vec<(i32, String)> = descriptor
                .field
                .iter()
                .map(|f| (f.number(), format!("{}={}", f.name(), f.number())))
                .collect();
            numbered.sort();
            let numbered: Vec<String> = numbered.into_iter().map(|(_, field)| field).collect();
            assert_eq!(numbered.join(" "), fields, "{message}");
        }
    }
}

fn request() -> vllm::GenerateRequest {
    vllm::GenerateRequest {
        prompt: Some(grpc::text("Once upon a time")),
        stopping: Some(vllm::StoppingCriteria { max_new_tokens: 12, ignore_eos: true, ..Default::default() }),
        response: Some(vllm::ResponseOptions {
            prompt_token_ids: true,
            output_token_ids: true,
            ..Default::default()
        }),
        ..Default::default()
    }
}

#[tokio::test]
async fn messages_of_a_stream_come_in_order() {
    let server = Server::shared(&[]);
    let whole = grpc::generate(server.grpc, request()).await;
    let messages = grpc::generate_stream(server.grpc, request()).await;
    let (first, rest) = messages.split_first().expect("messages");
    // The prompt comes first, and alone.
    assert!(first.outputs.is_none(), "{first:?}");
    assert_eq!(first.prompt_info, whole.prompt_info);
    let prompt = first.prompt_info.as_ref().expect("set");
    assert_eq!(prompt.num_prompt_tokens as usize, prompt.token_ids.len());
    let (last, _) = rest.split_last().expect("messages");
    let (mut text, mut ids) = (String::new(), Vec::new());
    for message in rest {
        assert!(message.prompt_info.is_none(), "{message:?}");
        let output = message.outputs.as_ref().expect("an output");
        assert_eq!(output.num_tokens as usize, output.token_ids.len());
        assert_eq!(output.finish_info.is_some(), std::ptr::eq(message, last), "{message:?}");
        text.push_str(&output.text);
        ids.extend(&output.token_ids);
    }
    let expected = whole.outputs.expect("an output");
    assert_eq!((text, ids), (expected.text, expected.token_ids));
    let finish = expected.finish_info.expect("an end");
    assert_eq!(finish.num_output_tokens, 12);
    assert_eq!(grpc::finish_reason(&finish), "length");
}

/// Without a temperature gRPC is greedy, where HTTP draws: vLLM's rule.
#[tokio::test]
async fn the_default_is_greedy_text() {
    let server = Server::shared(&[]);
    let mut plain = request();
    plain.response = None;
    let answer = grpc::generate(server.grpc, plain.clone()).await.outputs.expect("an output");
    assert!(!answer.text.is_empty() && answer.token_ids.is_empty() && answer.logprobs.is_empty());
    plain.temperature = Some(0.0);
    let greedy = grpc::generate(server.grpc, plain.clone()).await.outputs.expect("an output");
    assert_eq!(answer.text, greedy.text);
    plain.response = Some(vllm::ResponseOptions {
        output_text: Some(false),
        output_token_ids: true,
        ..Default::default()
    });
    let ids_only = grpc::generate(server.grpc, plain).await.outputs.expect("an output");
    assert!(ids_only.text.is_empty() && ids_only.token_ids.len() == 12);
}

#[tokio::test]
async fn an_end_says_what_ended_it() {
    use vllm::finish_info::StopReason;
    let server = Server::shared(&[]);
    let mut ask = request();
    let plain = grpc::generate(server.grpc, ask.clone()).await.outputs.expect("an output");
    let finish = |output: Option<vllm::SequenceOutput>| output.and_then(|o| o.finish_info).expect("an end");

    let id = plain.token_ids[5];
    ask.stopping.as_mut().expect("set").stop_token_ids = vec![id];
    let stopped = finish(grpc::generate(server.grpc, ask.clone()).await.outputs);
    assert_eq!(stopped.stop_reason, Some(StopReason::StopTokenId(id)));

    let stop: String = plain.text.chars().skip(8).take(4).collect();
    ask.stopping = Some(vllm::StoppingCriteria {
        max_new_tokens: 12,
        stop_strings: vec![stop.clone()],
        ..Default::default()
    });
    let stopped = finish(grpc::generate(server.grpc, ask.clone()).await.outputs);
    assert_eq!(stopped.stop_reason, Some(StopReason::StopString(stop)));

    ask.prompt = Some(grpc::text("<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n"));
    ask.stopping = Some(vllm::StoppingCriteria { max_new_tokens: 80, ..Default::default() });
    let stopped = finish(grpc::generate(server.grpc, ask).await.outputs);
    assert_eq!(stopped.stop_reason, Some(StopReason::EosTokenId(2)));
    assert_eq!(grpc::finish_reason(&stopped), "stop");
}

#[tokio::test]
async fn control_describes_the_server() {
    let server = Server::shared(&[]);
    let mut control = grpc::control(server.grpc).await;
    let info = control.get_server_info(vllm::GetServerInfoRequest {}).await.expect("known").into_inner();
    assert_eq!(info.api_version, "vllm");
    assert_eq!(info.max_model_len, 2048);
    assert_eq!(info.kv_block_size, 16);
    assert!(info.total_kv_blocks >= 128 && info.max_running_requests > 0 && info.max_batched_tokens > 0);
    assert_eq!(info.parallelism.expect("set").data_parallel_size, 1);
    assert_ne!(info.instance_id, "");
    let model = control.get_model_info(vllm::GetModelInfoRequest {}).await.expect("known").into_inner();
    assert_eq!(model.served_model_name, "pebble");
    assert!(model.model_id.contains("pebble") && model.supports_text_input && model.supports_token_ids_input);
    let sources = control.get_kv_event_sources(vllm::GetKvEventSourcesRequest {}).await.expect("known");
    assert!(sources.into_inner().sources.is_empty());
}
