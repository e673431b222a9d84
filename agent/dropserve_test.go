package agent

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/weir-net/weir/agent/drops"
	"github.com/weir-net/weir/agentapi"
)

// TestDropOnce: if a drop is in both ring and hub, it is written once.
func TestDropOnce(t *testing.T) {
	l := newDropLog()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		l.serve(r.Context(), w, r)
	}))
	defer server.Close()
	entry := func(count uint64) drops.Entry {
		return drops.Entry{Drop: &agentapi.Drop{Kind: agentapi.DropShown, Time: time.Now(), Count: count}}
	}
	late := entry(1)
	l.ring.Add([]drops.Entry{late})
	answer, err := http.Get(server.URL + agentapi.DropsQuery{Follow: true, Since: time.Hour}.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = answer.Body.Close() }()
	values := json.NewDecoder(answer.Body)
	var sign agentapi.Drop
	if err := values.Decode(&sign); err != nil || sign.Kind != "" {
		t.Fatalf("%v, %+v, want a sign of life", err, sign)
	}
	for _, want := range []uint64{1, 2, 3} {
		switch want {
		case 2:
			l.hub.Publish([]drops.Entry{entry(2)})
		case 3:
			l.hub.Publish([]drops.Entry{late, entry(3)})
		}
		var d agentapi.Drop
		if err := values.Decode(&d); err != nil || d.Count != want {
			t.Fatalf("%v, %+v, want the drop %d", err, d, want)
		}
	}
}
