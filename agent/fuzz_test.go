package agent

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/containernetworking/plugins/pkg/netlinksafe"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/netfilter/iptables"
)

// FuzzEnrol: any request to enrol gets a JSON answer. As there are no records, the answer is a refusal.
func FuzzEnrol(f *testing.F) {
	for _, s := range []string{
		`{"id": "c:eth0"}`, `{"id": "../c:eth0"}`, `{"id": "c:e:0"}`, `{"id": 1}`, `{"id": "c:eth0", "id": "."}`,
		`{"ID": "c:eth0"}`, `{}`, `null`, `[`, ``, "\xff",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		a := newAgent(Options{Log: slog.New(slog.DiscardHandler)}, &iptables.Driver{}, netlinksafe.Handle{})
		done := make(chan struct{})
		go func() { // answer as the loop does; there are no records
			defer close(done)
			for e := range a.events {
				a.handle(e)
				a.answer(nil)
			}
		}()
		w := httptest.NewRecorder()
		a.serveEnrol(w, httptest.NewRequest(http.MethodPost, agentapi.EnrolPath, bytes.NewReader(body)))
		close(a.events)
		<-done
		var v agentapi.EnrolAnswer
		if err := json.Unmarshal(w.Body.Bytes(), &v); err != nil || v.Error == "" {
			t.Errorf("%q is answered %d %q, %v", body, w.Code, w.Body, err)
		}
		if w.Code != http.StatusBadRequest && w.Code != http.StatusNotFound {
			t.Errorf("%q is answered %d", body, w.Code)
		}
	})
}
