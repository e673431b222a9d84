//go:build bench

package bench_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/weir-net/weir/test/estimate"
	"github.com/weir-net/weir/test/nodetest"
)

var (
	turns = flag.String("turns", "", "directory with the pipes now and before, by which two processes take turns")
	me    = flag.String("me", "now", "which of the two this process is: now or before")
)

// times has a process's measurements, by subject ("ADD weir", for example). Each round adds one measurement to each
// subject.
type times map[string][]time.Duration

// TestTurns measures ADD and DEL, in turns with a second process that runs another commit's programs. The processes
// pass a token to each other through two pipes.
func TestTurns(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, nil)
	n.Manifest(
		"bench.yaml",
		policies+"---\napiVersion: v1\nkind: Pod\nmetadata: {name: pod-0, namespace: bench, labels: {app: bench}}\n",
	)
	n.StartAgent()
	other := map[string]string{"now": "before", "before": "now"}[*me]
	pipe := func(name string) *os.File {
		f, err := os.OpenFile(filepath.Join(*turns, name), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		return f
	}
	mine, others := pipe(*me), pipe(other)
	await := func() {
		if _, err := mine.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	pass := func() {
		if _, err := others.Write([]byte{0}); err != nil {
			t.Fatal(err)
		}
	}
	took := times{}
	const warmUp = 3
	for round := range *rounds + warmUp {
		await()
		if round%copyEvery == 0 {
			recopy(t, n.Bin, *programs)
		}
		for _, c := range []contender{plugin(t, n, "weir", weirConf), plugin(t, n, "bridge", bridgeConf())} {
			added, deleted := once(t, c)
			if round >= warmUp {
				took["ADD "+c.name] = append(took["ADD "+c.name], added)
				took["DEL "+c.name] = append(took["DEL "+c.name], deleted)
			}
		}
		if *me == "before" && round == *rounds+warmUp-1 {
			save(t, took)
		}
		pass()
	}
	if *me == "now" {
		await()
		compare(t, took)
	}
}

func save(t *testing.T, took times) {
	t.Helper()
	data, err := json.Marshal(took)
	if err == nil {
		err = os.WriteFile(filepath.Join(*turns, "times"), data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func compare(t *testing.T, now times) {
	t.Helper()
	var before times
	data, err := os.ReadFile(filepath.Join(*turns, "times"))
	if err == nil {
		err = json.Unmarshal(data, &before)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, what := range []string{"ADD", "DEL"} {
		is := estimate.Ratios(now[what+" weir"], now[what+" bridge"])
		was := estimate.Ratios(before[what+" weir"], before[what+" bridge"])
		differ := make([]float64, len(is))
		for i := range is {
			differ[i] = is[i] - was[i]
		}
		fmt.Printf("ratio %s weir/bridge before: %s\n", what, estimate.Text(was, 3))
		fmt.Printf("ratio %s weir/bridge now: %s\n", what, estimate.Text(is, 3))
		fmt.Printf("ratio %s weir/bridge now less before: %s\n", what, estimate.Text(differ, 3))
		both := estimate.Ratios(now[what+" weir"], before[what+" weir"])
		fmt.Printf("ratio %s weir now/before: %s\n", what, estimate.Text(both, 3))
	}
}
