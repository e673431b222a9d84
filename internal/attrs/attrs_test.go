package attrs

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

type attribute struct {
	Kind  uint16
	Value []byte
}

func TestIn(t *testing.T) {
	nested := nl.NewRtAttr(7|unix.NLA_F_NESTED, nil)
	nested.AddRtAttr(1, []byte{1})
	data := slices.Concat(nl.NewRtAttr(3, []byte("abcde")).Serialize(), nl.NewRtAttr(4, nil).Serialize(),
		nested.Serialize())
	want := []attribute{{3, []byte("abcde")}, {4, []byte{}}, {7, nl.NewRtAttr(1, []byte{1}).Serialize()}}
	collect := func(data []byte) (all []attribute) {
		for kind, value := range In(data) {
			all = append(all, attribute{kind, value})
		}
		return all
	}
	if diff := cmp.Diff(want, collect(data)); diff != "" {
		t.Error(diff)
	}
	for length := range data { // In yields only whole attributes, wherever the data is cut off
		got := collect(data[:length])
		if len(got) >= len(want) || len(got) > 0 && !cmp.Equal(want[:len(got)], got) {
			t.Errorf("%d bytes: %v", length, got)
		}
	}
	for range In(data) {
		break
	}
}

// TestAppend: Append, AppendText and Nest append the same bytes that the netlink library makes for the same
// attributes.
func TestAppend(t *testing.T) {
	want := nl.NewRtAttr(7|unix.NLA_F_NESTED, nil)
	want.AddRtAttr(1, []byte{1, 2, 3})
	want.AddRtAttr(2|unix.NLA_F_NESTED, nil).AddRtAttr(3, nl.ZeroTerminated("text"))
	got := Nest([]byte("before"), 7, func(to []byte) []byte {
		to = Append(to, 1, 1, 2, 3)
		return Nest(to, 2, func(to []byte) []byte { return AppendText(to, 3, "text") })
	})
	if diff := cmp.Diff(append([]byte("before"), want.Serialize()...), got); diff != "" {
		t.Error(diff)
	}
}

// FuzzIn: whatever the data, In doesn't panic, and yields no more bytes than the data has.
func FuzzIn(f *testing.F) {
	f.Add([]byte{8, 0, 1, 0, 1, 2, 3, 4})
	f.Add([]byte{3, 0, 1, 0})
	f.Add([]byte{255, 255, 1, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		sum := 0
		for _, value := range In(data) {
			sum += sizeofHeader + len(value)
		}
		if sum > len(data) {
			t.Errorf("%d bytes of %d", sum, len(data))
		}
	})
}
