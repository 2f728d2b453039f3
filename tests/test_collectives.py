"""The communication of a compiled program, read from its text."""

from atst_jax.performance.collectives import Collective, find_collectives


def test_collectives_are_read_from_the_text():
  text = """
  %a = (f32[768]{0:T(256)}, bf16[2,3]{1,0}) all-reduce(%x, %y), replica_groups=mesh['a'=8,'b'=2] {'a'}, to_apply=%add
  %b = f32[64]{0} reduce-scatter(%x), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
  %c = (f32[64]{0}, f32[256]{0}) all-gather-start(%x), replica_groups=[2,4]<=[8], dimensions={0}
  %d = f32[256]{0} all-gather-done(%c)
  %e = pred[8]{0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}
  %g = (f32[4]{0}, u32[], token[]) send(%x, %after), channel_id=4, is_host_transfer=true
  %h = token[] send-done(%g), channel_id=4
  %f = f32[8]{0} fusion(%all-reduce), calls=%g"""  # noqa: E501
  assert find_collectives(text, 16) == [
    Collective("all-reduce", 4 * 768 + 2 * 6, 8),
    Collective("reduce-scatter", 4 * 256, 4),
    Collective("all-gather", 4 * 256, 4),
    Collective("collective-permute", 8, 16),
    Collective("send", 16, 0),
  ]
  loop = """HloModule step
%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %s = f32[] add(%a, %b)
}

%part (x: f32[4]) -> f32[4] {
  ROOT %r = f32[4]{0} all-reduce(%x), replica_groups={{0,1}}, to_apply=%add
}

%until (x: f32[4]) -> pred[] {
  ROOT %p = pred[] compare(%x, %x), direction=LT
}

ENTRY %main (x: f32[4]) -> f32[4] {
  %w = f32[4]{0} while(%x), condition=%until, body=%part, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %z = f32[4]{0} all-reduce(%w), replica_groups={{0,1}}, to_apply=%add
}
"""  # noqa: E501
  assert find_collectives(loop, 2) == 4 * [Collective("all-reduce", 16, 2)]  # accumulation's loop
  assert Collective("all-reduce", 800, 8).sent == 1400
  assert Collective("all-gather", 800, 8).sent == 700
  assert Collective("collective-permute", 8, 16).sent == 8
