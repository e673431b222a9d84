package policy

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestWorkloadsName(t *testing.T) {
	long := strings.Repeat("a", 60)
	cut := long[:57] + "-" // 58 characters, the length to which a generateName is cut
	for _, tc := range []struct {
		w       Workload
		yes, no []string
	}{
		{
			Workload{Kind: "Deployment", Name: "web"},
			[]string{"web-7d4b9c6f5-x2k9p", "web-8-bcdfg", "web-54f7bbdd95-zzzzz"},
			[]string{
				"web", "web-", "web-x2k9p", "web-7d4b9c6f5", "web-7d4b9c6f5-x2k9", "web-7d4b9c6f5-x2k9pp", "web-7d4b9c6f5-x2k9a",
				"web-7a4b9c6f5-x2k9p", "web-7d4b9c6f555-x2k9p", "web--x2k9p", "web2-7d4b9c6f5-x2k9p", "a-web-7d4b9c6f5-x2k9p",
				"web-7d4b9c6f5-X2k9p",
				"web-7d4b-9c6f-x2k9p",
			},
		},
		{
			Workload{Kind: "Deployment", Name: long},
			[]string{long[:58] + "bcdfg"},
			[]string{long + "-bcdfg", long[:57] + "bcdfg", long[:58] + "bcdfa"},
		},
		{
			Workload{Kind: "Deployment", Name: long[:50]},
			[]string{long[:50] + "-bcdfghj" + "xxxxx", long[:50] + "-bcdfgh-" + "xxxxx", long[:50] + "-bcdf-xxxxx"},
			[]string{long[:50] + "-bcdfghjk" + "xxxxx", long[:50] + "-bcdf" + "xxxxx", long[:50] + "-bcd-fgh" + "xxxxx"},
		},
		{
			Workload{Kind: "ReplicaSet", Name: "web"},
			[]string{"web-x2k9p"},
			[]string{"web", "webx2k9p", "web-7d4b9-x2k9p", "web-x2k9", "web-x2k1p"},
		},
		{Workload{Kind: "ReplicationController", Name: "web-1"}, []string{"web-1-x2k9p"}, []string{"web-1", "web-x2k9p"}},
		{
			Workload{Kind: "ReplicaSet", Name: long[:57]},
			[]string{cut + "xxxxx"},
			[]string{long[:57] + "xxxxx", long[:58] + "xxxxx"},
		},
		{
			Workload{Kind: "StatefulSet", Name: "db"},
			[]string{"db-0", "db-1", "db-4711"},
			[]string{"db", "db-", "db-00", "db-01", "db--1", "db-+1", "db-x2k9p", "db-99999999999", "db2-0", "0"},
		},
		{Workload{Kind: "StatefulSet", Name: "db", Start: 3}, []string{"db-3", "db-12"}, []string{"db-0", "db-2"}},
		{Workload{Kind: "StatefulSet", Name: long + long}, []string{long + long + "-7"}, []string{(long + long)[:58] + "-7"}},
		{
			Workload{Kind: "DaemonSet", Name: "log"},
			[]string{"log-x2k9p"},
			[]string{"log", "log-n1", "log-0", "log-x2k9p-x2k9p"},
		},
		{
			Workload{Kind: "Job", Name: "once"},
			[]string{"once-x2k9p"},
			[]string{"once", "once-0-x2k9p", "once-28000000-x2k9p"},
		},
		{
			Workload{Kind: "Job", Name: "once", Indexed: true},
			[]string{"once-0-x2k9p", "once-12-x2k9p"},
			[]string{"once-x2k9p", "once-01-x2k9p", "once--x2k9p", "x-0-x2k9p", "once-0x2k9p"},
		},
		{
			Workload{Kind: "Job", Name: long, Indexed: true},
			[]string{long[:54] + "-10-xxxxx", long[:55] + "-1-xxxxx"},
			[]string{long[:55] + "-10-xxxxx", long[:54] + "-1-xxxxx"},
		},
		{
			Workload{Kind: "CronJob", Name: "tick"},
			[]string{"tick-28000000-x2k9p", "tick-1680000000-x2k9p"},
			[]string{"tick-x2k9p", "tick-2800000a-x2k9p", "tick-28000000", "tick-28000000000-x2k9p"},
		},
		{
			Workload{Kind: "CronJob", Name: "tick", Indexed: true},
			[]string{"tick-28000000-0-x2k9p"},
			[]string{"tick-28000000-x2k9p", "tick-0-x2k9p"},
		},
		{
			Workload{Kind: "CronJob", Name: long[:52]},
			[]string{long[:52] + "-28000" + "xxxxx"},
			[]string{long[:52] + "-28000000-xxxxx"},
		},
		{
			Workload{Kind: "DeploymentConfig", Name: "web"},
			[]string{"web-1-x2k9p", "web-12-x2k9p"},
			[]string{"web-x2k9p", "web-1-deploy", "web-x-x2k9p"},
		},
		{
			Workload{Kind: "Pod", Name: "etcd", Node: "n1"},
			[]string{"etcd-n1"},
			[]string{"etcd", "etcd-n2", "etcd-n1-x2k9p", "etcdn1"},
		},
	} {
		for _, name := range tc.yes {
			if _, ok := tc.w.Make(name); !ok {
				t.Errorf("%s makes no pod %s", tc.w, name)
			}
		}
		for _, name := range tc.no {
			if p, ok := tc.w.Make(name); ok {
				t.Errorf("%s makes pod %s: %+v", tc.w, name, p)
			}
		}
	}
}

// TestWorkloadsLabel: if the value of a controller's label follows from the pod's name, the pod has the label. Other
// labels of controllers are unknown.
func TestWorkloadsLabel(t *testing.T) {
	long := strings.Repeat("a", 52)
	for _, tc := range []struct {
		w       Workload
		name    string
		labels  map[string]string
		unknown []string
	}{
		{
			Workload{Kind: "Deployment", Name: "web"},
			"web-7d4b9c6f5-x2k9p",
			map[string]string{"pod-template-hash": "7d4b9c6f5"},
			nil,
		},
		{Workload{Kind: "Deployment", Name: long}, long + "-bcdf-xxxxx", map[string]string{"pod-template-hash": "bcdf"}, nil},
		{Workload{Kind: "Deployment", Name: long}, long + "-bcdfgxxxxx", nil, []string{"pod-template-hash"}},
		{Workload{Kind: "ReplicaSet", Name: "web"}, "web-x2k9p", nil, nil},
		{
			Workload{Kind: "StatefulSet", Name: "db"},
			"db-2",
			map[string]string{"statefulset.kubernetes.io/pod-name": "db-2", "apps.kubernetes.io/pod-index": "2"},
			[]string{"controller-revision-hash"},
		},
		{
			Workload{Kind: "DaemonSet", Name: "log"},
			"log-x2k9p", nil,
			[]string{"controller-revision-hash", "pod-template-generation"},
		},
		{
			Workload{Kind: "CronJob", Name: "tick", Indexed: true},
			"tick-28000000-7-x2k9p",
			map[string]string{
				"job-name": "tick-28000000", "batch.kubernetes.io/job-name": "tick-28000000",
				"batch.kubernetes.io/job-completion-index": "7",
			},
			[]string{"controller-uid", "batch.kubernetes.io/controller-uid"},
		},
		{Workload{Kind: "Job", Name: "once", ManualSelector: true}, "once-x2k9p", nil, nil},
		{
			Workload{Kind: "Job", Name: "twice", ManualSelector: true, Indexed: true},
			"twice-1-x2k9p",
			map[string]string{"batch.kubernetes.io/job-completion-index": "1"},
			nil,
		},
		{
			Workload{Kind: "DeploymentConfig", Name: "web"},
			"web-3-x2k9p",
			map[string]string{"deploymentconfig": "web", "deployment": "web-3"},
			nil,
		},
	} {
		pod, ok := tc.w.Make(tc.name)
		want := tc.labels
		if want == nil {
			want = map[string]string{}
		}
		if diff := cmp.Diff(want, pod.Labels); !ok || diff != "" {
			t.Errorf("%s, pod %s: %v %s", tc.w, tc.name, ok, diff)
		}
		if diff := cmp.Diff(tc.unknown, pod.Unknown); diff != "" {
			t.Errorf("%s, pod %s: unknown labels: %s", tc.w, tc.name, diff)
		}
	}
}
