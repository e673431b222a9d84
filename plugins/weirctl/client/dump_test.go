package client

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/weir-net/weir/agentapi"
)

// TestDump: if a node doesn't answer, the bundle has the reason, and the status of each other node. If an answer has
// fields that weirctl doesn't know, these fields are left out.
func TestDump(t *testing.T) {
	f := &fakeCluster{}
	f.add("n1")
	f.add("n2")
	f.fails = func(node string) string { return map[string]string{"n2": "weirctl: no agent answers"}[node] }
	f.handle = func(_ string, w http.ResponseWriter, r *http.Request) {
		policies := `["ns/p"]`
		if r.URL.Path == agentapi.SummaryPath {
			policies = "1"
		}
		_, _ = fmt.Fprintf(w, `{"ready": true, "policies": %s, "token": "secret", "env": {"A": "secret"}}`, policies)
	}
	var out bytes.Buffer
	s, err := f.start(t).Dump(t.Context(), &out, AskOptions{Parallel: 2, Within: time.Minute}, nil, "v")
	if err != nil || len(s.Nodes) != 2 {
		t.Fatalf("%v, %+v", err, s)
	}
	zipped, err := gzip.NewReader(&out)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for r := tar.NewReader(zipped); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(r)
		files[h.Name] = string(text)
		if strings.Contains(string(text), "secret") {
			t.Errorf("%s has a secret", h.Name)
		}
	}
	if len(files) != 3 || !strings.Contains(files["weir/nodes/n1.json"], "ns/p") ||
		!strings.Contains(files["weir/cluster.json"], "no agent answers") || files["weir/version.json"] == "" {
		t.Errorf("%q", files)
	}
}
